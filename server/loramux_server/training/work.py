"""Training written as generators that pause, so that the job scheduler gets the base back between two work items.

A work item is the least amount of training that is not interrupted: one decoder layer of a micro-batch (its forward or
its backward), or one chunk of logits. A task is a sequence of work items after which another job may have its turn.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import TypeVar, final

T = TypeVar("T")


@final
@dataclass(frozen=True, slots=True)
class Pause:
    """Yielded between two work items of a task: until the generator goes on, requests may use the base."""

    settled: bool = False
    """Whether it goes on only when the device has done what was queued, because it then reads results."""


PAUSE, SETTLE = Pause(), Pause(settled=True)


@final
@dataclass(frozen=True, slots=True)
class Held:
    """Yielded at the end of a task of one job: other jobs may have their turn."""

    nbytes: int
    """Bytes that the job holds from now on."""


Interruptible = Generator[Pause, None, T]
"""A computation that yields a :class:`Pause` after every work item and returns T."""
Tasks = Generator[Pause | Held, None, T]
"""Tasks that one job does alone (reading adapters, evaluating); returns T."""
