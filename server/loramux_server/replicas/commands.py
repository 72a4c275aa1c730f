"""What an engine's commands mean for the choice of a replica."""

from __future__ import annotations

from dataclasses import dataclass

from ..core.backend import EmbedCommand, GenerateCommand, ScoreCommand
from ..core.jobs import TrainCommand
from ..core.types import AdapterVersion
from ..engine.transport.protocol import Command, LoadCommand, PinCommand, command_id
from .routing.affinity import Work
from .routing.prefixes import prefix_chain


@dataclass(frozen=True, slots=True)
class Refused:
    """All that a replica answers to a command that it did not take, since it is being drained."""

    replica: str
    """Its id."""


def work_of(command: Command, replica: str = "") -> Work:
    """What the policy knows of a command; ``replica``: the only one that it is for."""
    adapters, tokens = _needs(command)
    digests = frozenset(adapter.digest for adapter in adapters)
    prefix: tuple[bytes, ...] = ()
    if isinstance(command, GenerateCommand | ScoreCommand):  # those that read the prefix cache
        prefix = prefix_chain(command.tenant, command.stack, command.prompt_ids)
    trains = isinstance(command, TrainCommand)
    return Work(command_id(command), digests, tokens, trains=trains, prefix=prefix, replica=replica)


def digests_of(command: Command) -> frozenset[str]:
    """The adapters that a command is computed with."""
    match command:
        case PinCommand():
            found = command.adapters
        case TrainCommand():
            own = (command.init, command.current, *(entry.adapter for s in command.stacks for entry in s.entries))
            found = tuple(version for version in own if version is not None)
        case _:
            found, _ = _needs(command)
    return frozenset(version.digest for version in found)


def _needs(command: Command) -> tuple[tuple[AdapterVersion, ...], int]:
    """The adapters that a command is computed with, and the most tokens that it may take."""
    match command:
        case GenerateCommand():
            tokens = len(command.prompt_ids) + command.sampling.max_tokens
        case ScoreCommand():
            tokens = len(command.prompt_ids) + len(command.continuation_ids)
        case EmbedCommand():
            tokens = len(command.prompt_ids)
        case LoadCommand():
            return (command.adapter,), 0
        case _:
            return (), 0
    return tuple(entry.adapter for entry in command.stack.entries), tokens
