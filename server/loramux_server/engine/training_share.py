"""The training slot of the engine loop: background work within its share of the time."""

from __future__ import annotations

import time
from collections.abc import Callable

from ..core.background import Background, Report
from ..core.errors import Error
from ..core.jobs import TrainCommand


class TrainingSlot:
    """Runs at most one piece of background work per turn.

    While requests are served, training may use ``share`` of the time: each serve step earns share / (1 - share) of
    its own length, at most ``slice_seconds`` are saved up, and a piece aims at what there is: a little after every
    step disturbs streams less than much after some. With nothing to serve it runs back to back.
    """

    def __init__(
        self,
        work: Background,
        share: float,
        slice_seconds: float,
        done: Callable[[str, Error | None], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.steps, self.seconds = 0, 0.0
        self._work = work
        self._ratio = share / max(1 - share, 1e-9)
        self._slice, self._done, self._clock = slice_seconds, done, clock
        self._credit = 0.0
        self._last = clock()

    @property
    def busy(self) -> bool:
        return bool(self._work.jobs)

    @property
    def jobs(self) -> tuple[str, ...]:
        return self._work.jobs

    @property
    def nbytes(self) -> int:
        return self._work.nbytes

    def add(self, command: TrainCommand, report: Report) -> None:
        """Take a job in; ``done(job, error or None)`` is called when it ends by itself. Raises what refuses it."""
        self._work.add(command, report)

    def remove(self, job: str) -> None:
        """Drop a job, if it is here, without a word."""
        self._work.remove(job)

    def turn(self, serving: bool) -> None:
        """Called after every serve step; does one piece of work if it is training's turn."""
        now = self._clock()
        if serving:
            self._credit = min(self._credit + (now - self._last) * self._ratio, self._slice)
        if self.busy and (not serving or self._credit > 0):
            self._piece(serving)
        self._last = self._clock()

    def _piece(self, serving: bool) -> None:
        started = self._clock()
        ended = self._work.advance(self._credit if serving else None)
        taken = self._clock() - started
        self.steps, self.seconds = self.steps + 1, self.seconds + taken
        self._credit = self._credit - taken if serving else 0.0
        for job, error in ended:
            self._done(job, error)
