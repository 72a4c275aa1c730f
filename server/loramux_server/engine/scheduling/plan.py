"""What the scheduler says and is told: plain frozen values, so that tests compare them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum, auto


@dataclass(frozen=True, slots=True)
class Work:
    """Part of a step: compute tokens [start, start + length) of a sequence, whose pages are ``pages``."""

    id: str
    start: int
    length: int
    pages: tuple[int, ...]
    samples: bool
    """Whether the last of these tokens is the sequence's last, so that a new one is chosen."""


@dataclass(frozen=True, slots=True)
class StepPlan:
    """A step: generating sequences first (adapted before bare), then prompt chunks."""

    work: tuple[Work, ...] = ()
    preempted: tuple[str, ...] = ()
    started: tuple[str, ...] = ()
    """Those that run for the first time."""

    @property
    def tokens(self) -> int:
        return sum(w.length for w in self.work)

    @property
    def kind(self) -> str:
        """``decode`` when every sequence adds one token, else ``prefill``."""
        return "decode" if all(w.length == 1 for w in self.work) else "prefill"


class Admission(Enum):
    """Whether a sequence's stack could be acquired."""

    READY = auto()
    LOADING = auto()
    """Not in memory until a read ends."""
    FULL = auto()
    """No capacity until something running ends."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of a step and of the queue."""

    max_batch_tokens: int = 512
    max_running: int = 64
    max_queue: int = 1024

    def at_most(self, max_batch_tokens: int) -> Limits:
        """The same for steps of no more than ``max_batch_tokens``."""
        return replace(
            self,
            max_batch_tokens=min(max_batch_tokens, self.max_batch_tokens),
            max_running=min(max_batch_tokens, self.max_running),
        )
