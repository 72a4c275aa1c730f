"""Work that the engine does beside serving, in pieces: the seam between the engine loop and training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from .jobs import TrainCommand, TrainEvent


class BackgroundTask(Protocol):
    """A job in the engine's training slot. All calls come from the thread that owns the model."""

    def advance(self, seconds: float | None) -> bool:
        """Do one piece of work, aiming at ``seconds`` or, when None, at whatever is most efficient.

        Returns False once the job is complete. A failure is raised as ``core.errors.Error``.
        """
        ...

    def close(self) -> None:
        """Free everything. Called exactly once, after the last ``advance``, whatever it did."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes of parameters, gradients, optimiser state and cached activations."""
        ...


StartTask = Callable[[TrainCommand, Callable[[TrainEvent], object]], BackgroundTask]
"""Makes the task of a command; events go to the callback."""
