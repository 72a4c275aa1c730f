"""What is known about the call that is being answered, for the doors and the logs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .callers.principal import Principal
from .observing.tracing import TraceContext
from .types import Stack

if TYPE_CHECKING:
    from .observing.observer import RequestFinished


@dataclass(slots=True)
class Subject:
    """What a call is about, for the audit log and the metrics."""

    name: str = ""
    """An adapter version, a job, a dataset. Empty: none was named yet."""
    details: dict[str, str] = field(default_factory=dict)
    stack: Stack | None = None
    """With which it computes. None: with none, or its names were not resolved yet."""


@dataclass(slots=True)
class Work:
    """What was done for a call, for its line in the log."""

    requests: list[RequestFinished] = field(default_factory=list)
    """Generations, scores and embeddings that it asked for, as they ended."""
    sending: float = 0.0
    """Seconds that pieces of its answer waited for the client to read."""


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
    subject: Subject = field(default_factory=Subject, compare=False)
    trace: TraceContext | None = None
    """The span that it is answered under: the server's own, or the caller's where the server makes none."""
    work: Work = field(default_factory=Work, compare=False)


_current: ContextVar[Call | None] = ContextVar("loramux_call", default=None)

enter = _current.set
"""Make a call this task's; None: whoever calls is not known yet."""
known = _current.get
"""The call that this task answers; None: whoever calls is not known yet, or there is no call."""


def current() -> Call:
    """The call that this task answers. Raises LookupError where there is none."""
    call = _current.get()
    if call is None:
        raise LookupError("no call is being answered here")
    return call


@contextmanager
def sending() -> Iterator[None]:
    """Note for the current call, if there is one, the time that the block waits for the client to read."""
    call, began = _current.get(), time.monotonic()
    try:
        yield
    finally:
        if call is not None:
            call.work.sending += time.monotonic() - began


def principal() -> Principal:
    """Who made it."""
    return current().principal


def trace() -> TraceContext | None:
    """The span that the current call is answered under; None: it is not traced, or there is no call."""
    call = _current.get()
    return None if call is None else call.trace


def about(name: str, **details: str) -> None:
    """Name what the current call changes, as exactly as is known by now; the last name wins, details add up.

    Names, ids and words of a closed set only: the audit log has them. Outside a call it does nothing.
    """
    call = _current.get()
    if call is not None:
        call.subject.name = name
        call.subject.details.update(details)


def computes_with(stack: Stack) -> None:
    """Note the stack of the current call, as soon as its names are resolved. Outside a call it does nothing."""
    call = _current.get()
    if call is not None:
        call.subject.stack = stack
