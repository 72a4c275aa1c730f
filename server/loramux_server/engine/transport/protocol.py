"""What crosses between front and engine beside the payloads of ``core.backend``: the commands and one envelope back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from ...core.backend import (
    EmbedCommand,
    EmbedResult,
    EngineStats,
    GenerateCommand,
    ProfileCommand,
    ProfileResult,
    ScoreCommand,
    ScoreResult,
    TokenEvent,
)
from ...core.errors import Code, Error, FieldViolation, Reason
from ...core.jobs import TrainCommand, TrainEvent
from ...core.types import AdapterVersion


@dataclass(frozen=True, slots=True)
class LoadCommand:
    """Make an adapter resident; answered once under ``id``."""

    id: str
    adapter: AdapterVersion


@dataclass(frozen=True, slots=True)
class UnloadCommand:
    """Drop an adapter from memory as soon as nothing uses it; answered once."""

    id: str
    digest: str


@dataclass(frozen=True, slots=True)
class PinCommand:
    """Never evict these adapters, and only these, from now on; answered once."""

    id: str
    adapters: tuple[AdapterVersion, ...]


@dataclass(frozen=True, slots=True)
class StatsCommand:
    """Answered once with ``EngineStats``."""

    id: str


@dataclass(frozen=True, slots=True)
class AbortCommand:
    """End whatever runs under ``id`` without an answer."""

    id: str


Command = (
    GenerateCommand
    | ScoreCommand
    | EmbedCommand
    | TrainCommand
    | LoadCommand
    | UnloadCommand
    | PinCommand
    | StatsCommand
    | ProfileCommand
    | AbortCommand
)
Payload = TokenEvent | ScoreResult | EmbedResult | TrainEvent | EngineStats | ProfileResult


@dataclass(frozen=True, slots=True)
class Failure:
    """An ``Error`` on its way to the front."""

    code: Code
    message: str
    reason: str
    retry_after: float | None = None
    violations: tuple[FieldViolation, ...] = ()

    @classmethod
    def of(cls, error: Error) -> Failure:
        return cls(error.code, error.message, error.reason, error.retry_after, error.violations)

    def error(self) -> Error:
        return Error(
            self.code,
            self.message,
            reason=cast("Reason", self.reason),
            violations=self.violations,
            retry_after=self.retry_after,
        )


@dataclass(frozen=True, slots=True)
class Output:
    """One answer to the command ``id``. ``done``: nothing follows."""

    id: str
    payload: Payload | None = None
    failure: Failure | None = None
    done: bool = False


def command_id(command: Command) -> str:
    """The id under which a command's answers come."""
    return command.job_id if isinstance(command, TrainCommand) else command.id
