"""The shape of what the services report, so that this package needs to import none of them."""

from __future__ import annotations

from typing import Protocol

from ..core.types import Stack


class Started(Protocol):
    """A generation or score that goes to the engine."""

    @property
    def tenant(self) -> str: ...
    @property
    def stack(self) -> Stack: ...
    @property
    def prompt_tokens(self) -> int: ...


class Finished(Started, Protocol):
    """The same request at its end. Times in seconds."""

    @property
    def method(self) -> str: ...
    @property
    def completion_tokens(self) -> int: ...
    @property
    def time_to_first_token(self) -> float | None: ...
