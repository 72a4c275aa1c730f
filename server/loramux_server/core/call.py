"""What is known about the call that is being answered, for the doors and the logs."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass

from .principal import Principal


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a client."""

    method: str
    """Name of the method without its service, such as ``Generate``."""
    request_id: str
    principal: Principal
    deadline: float | None = None
    """Seconds on the monotonic clock, from the client's own deadline; None: it set none."""
    peer: str = ""
    """Address of the client as its door names it; empty: unknown."""


_current: ContextVar[Call] = ContextVar("loramux_call")

enter = _current.set


def current() -> Call:
    """The call that this task answers."""
    return _current.get()


def principal() -> Principal:
    """Who made it."""
    return _current.get().principal
