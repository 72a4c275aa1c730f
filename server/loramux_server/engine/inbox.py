"""What the engine loop hears of: commands, and what other threads report."""

from __future__ import annotations

import queue
from dataclasses import dataclass

from .transport.protocol import Command
from .transport.wire import Unreadable


@dataclass(frozen=True, slots=True)
class AdapterRead:
    """The read of an adapter's files ended, well or not."""

    digest: str


@dataclass(frozen=True, slots=True)
class MaskReady:
    """A grammar's mask has come."""


@dataclass(frozen=True, slots=True)
class ProfileWritten:
    """The file of a profile is written, well or not."""

    id: str


@dataclass(frozen=True, slots=True)
class StopLoop:
    """The loop ends after the turn in progress."""


Message = Command | Unreadable | AdapterRead | MaskReady | ProfileWritten | StopLoop
Inbox = queue.SimpleQueue[Message]
