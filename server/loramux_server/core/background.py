"""Work that the engine does beside serving, in pieces: the seam between the engine loop and training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from .errors import Error
from .jobs import TrainCommand, TrainEvent

Report = Callable[[TrainEvent], object]
Ended = tuple[str, Error | None]
"""The id of a job that ended by itself, and why if it failed."""


class Background(Protocol):
    """The jobs in the engine's training slot. All calls come from the thread that owns the model."""

    def add(self, command: TrainCommand, report: Report) -> None:
        """Take a job in; its events go to ``report``. A refusal is raised as ``core.errors.Error``."""
        ...

    def remove(self, job_id: str) -> None:
        """Drop a job and free everything of it, if it is here, without a word."""
        ...

    def advance(self, seconds: float | None) -> Sequence[Ended]:
        """Work for about ``seconds`` or, when None, for as long as somebody who comes may wait.

        Gives the jobs that ended with it. A failure of one job is among these, and none of the others'.
        """
        ...

    @property
    def jobs(self) -> tuple[str, ...]:
        """The ids of the jobs at work."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes of parameters, gradients, optimiser states and cached activations."""
        ...
