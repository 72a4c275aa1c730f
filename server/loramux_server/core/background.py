"""The seam between the engine loop and training: jobs that the loop advances between its serve steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from .errors import Error
from .jobs import TrainCommand, TrainEvent

Report = Callable[[TrainEvent], object]
Ended = tuple[str, Error | None]
"""The id of a job that ended, and the error if it failed."""


class Background(Protocol):
    """The training jobs of an engine. All calls come from the thread that owns the model."""

    def add(self, command: TrainCommand, report: Report) -> None:
        """Start a job; its events go to ``report``. Raises ``core.errors.Error`` for a job that cannot be taken."""
        ...

    def remove(self, job_id: str) -> None:
        """Stop a job and free all its memory, if it is here; nothing is reported."""
        ...

    def advance(self, seconds: float | None) -> Sequence[Ended]:
        """Train for about ``seconds``; None: for the short stretch that a request which comes meanwhile may wait.

        Returns the jobs that ended. The failure of a job is returned, and does not affect the others.
        """
        ...

    def drop_activations(self) -> bool:
        """Free what a micro-batch under way holds: it is computed again, in smaller ones. False if there is none."""
        ...

    def suspend(self) -> str | None:
        """Suspend a job to its checkpoint until :meth:`resume`, which frees all that it holds. Returns its id.

        None where there is no job that can go on from a checkpoint.
        """
        ...

    def resume(self) -> None:
        """Memory suffices again: suspended jobs go on, with micro-batches as large as before."""
        ...

    @property
    def jobs(self) -> tuple[str, ...]:
        """The ids of the jobs, those that are suspended last."""
        ...

    @property
    def suspended(self) -> tuple[str, ...]:
        """The ids of the jobs that are suspended."""
        ...

    @property
    def device_seconds(self) -> float | None:
        """Seconds of a device that finished work items took, beside the thread's other work.

        None where jobs compute on the thread itself, in the time of :meth:`advance`.
        """
        ...

    @property
    def nbytes(self) -> int:
        """Bytes of parameters, gradients, optimizer states and kept activations."""
        ...
