"""The share of time that training gets in the engine loop."""

from __future__ import annotations

import time
from collections.abc import Callable

from ..core.background import Background, Report
from ..core.errors import Error
from ..core.jobs import TrainCommand
from ..core.observing.timeline import TIMELINE


class TrainingShare:
    """Lets training jobs run between serve steps.

    While requests are served, training may use ``share`` of the time. Each serve step earns credit of share / (1 -
    share) times its length, at most ``slice_seconds`` in total, and training runs for as long as the credit lasts: a
    little after every step delays streams less than much after a few. While nothing is served, training runs back to
    back.

    On a GPU training runs beside the steps, and its time is that of its finished work items on the device.
    """

    def __init__(
        self,
        jobs: Background,
        share: float,
        slice_seconds: float,
        done: Callable[[str, Error | None], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``done(job, error or None)`` is called for each job that ends by itself."""
        self.stretches, self.seconds = 0, 0.0
        """How often training has run, and for how long in total."""
        self._background = jobs
        self._ratio = share / max(1 - share, 1e-9)
        self._slice, self._done, self._clock = slice_seconds, done, clock
        self._credit = self._on_device = 0.0  # seconds
        self._last = clock()

    @property
    def busy(self) -> bool:
        """Whether there are jobs at work: some that are not suspended."""
        return len(self._background.jobs) > len(self._background.suspended)

    @property
    def jobs(self) -> tuple[str, ...]:
        """The ids of the jobs, those that are suspended included."""
        return self._background.jobs

    @property
    def suspended(self) -> tuple[str, ...]:
        """The ids of the jobs that gave up their memory."""
        return self._background.suspended

    @property
    def nbytes(self) -> int:
        """Bytes that the jobs hold."""
        return self._background.nbytes

    def add(self, command: TrainCommand, report: Report) -> None:
        """Start a job; its events go to ``report``. Raises ``core.errors.Error`` for a job that cannot be taken."""
        self._background.add(command, report)

    def remove(self, job: str) -> None:
        """Stop a job, if it is here; nothing is reported."""
        self._background.remove(job)

    def drop_activations(self) -> bool:
        """See :meth:`Background.drop_activations`."""
        return self._background.drop_activations()

    def suspend(self) -> str | None:
        """See :meth:`Background.suspend`."""
        return self._background.suspend()

    def resume(self) -> None:
        """See :meth:`Background.resume`."""
        self._background.resume()

    def turn(self, serving: bool) -> None:
        """Called after every serve step (``serving``), and again and again while nothing is served."""
        now, on_device = self._clock(), self._charge_device()
        if serving:
            self._credit = min(self._credit + (now - self._last) * self._ratio, self._slice) - on_device
        if self.busy and (not serving or self._credit > 0):
            self._train(serving)
        self._last = self._clock()

    def _train(self, serving: bool) -> None:
        started = self._clock()
        with TIMELINE.range("train"):
            ended = self._background.advance(self._credit if serving else None)
        self.stretches += 1
        taken = self._clock() - started if self._background.device_seconds is None else 0.0
        self.seconds += taken
        self._credit = self._credit - taken if serving else 0.0
        for job, error in ended:
            self._done(job, error)

    def _charge_device(self) -> float:
        """Seconds of a device that work items took which are done since the last call."""
        total = self._background.device_seconds
        if total is None:
            return 0.0
        taken, self._on_device = total - self._on_device, total
        self.seconds += taken
        return taken
