"""The training slot of the engine loop: background tasks in turn, within their share of the time."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import torch

from ..core.background import BackgroundTask
from ..core.errors import Code, Error

log = logging.getLogger(__name__)


class TrainingSlot:
    """Runs at most one piece of a background task per turn.

    While requests are served, training may use ``share`` of the time: each serve step earns share / (1 - share) of
    its own length, and a piece is started once enough is earned. With nothing to serve it runs back to back.
    """

    def __init__(
        self,
        share: float,
        slice_seconds: float,
        done: Callable[[str, Error | None], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.steps, self.seconds = 0, 0.0
        self._ratio = share / max(1 - share, 1e-9)
        self._slice, self._done, self._clock = slice_seconds, done, clock
        self._tasks: dict[str, BackgroundTask] = {}
        self._credit = 0.0
        self._last = clock()

    @property
    def busy(self) -> bool:
        return bool(self._tasks)

    @property
    def jobs(self) -> tuple[str, ...]:
        return tuple(self._tasks)

    @property
    def nbytes(self) -> int:
        return sum(task.nbytes for task in self._tasks.values())

    def add(self, job: str, task: BackgroundTask) -> None:
        """Take a task in; ``done(job, error or None)`` is called when it ends by itself."""
        self._tasks[job] = task

    def remove(self, job: str) -> None:
        """Drop a task, if it is here, without a word."""
        if (task := self._tasks.pop(job, None)) is not None:
            task.close()

    def turn(self, serving: bool) -> None:
        """Called after every serve step; does one piece of work if it is training's turn."""
        now = self._clock()
        if serving:
            self._credit = min(self._credit + (now - self._last) * self._ratio, self._slice)
        if self._tasks and (not serving or self._credit > 0):
            self._piece(serving)
        self._last = self._clock()

    def _piece(self, serving: bool) -> None:
        job, task = next(iter(self._tasks.items()))
        started = self._clock()
        error: Error | None = None
        try:
            more = task.advance(self._slice if serving else None)
        except Error as failure:
            more, error = False, failure
        except torch.OutOfMemoryError:
            more, error = False, Error(Code.RESOURCE_EXHAUSTED, "out of memory in a training step; lower batch_size")
        except torch.AcceleratorError:
            raise  # the device is lost, and with it everything
        except Exception:  # a defect in a job is no reason to stop serving
            log.exception("training job %s failed", job)
            more, error = False, Error(Code.INTERNAL, "the job failed by a defect; the server's log says why")
        taken = self._clock() - started
        self.steps, self.seconds = self.steps + 1, self.seconds + taken
        self._credit = self._credit - taken if serving else 0.0
        del self._tasks[job]
        if more:
            self._tasks[job] = task  # to the end of the queue: several jobs take turns
        else:
            task.close()
            self._done(job, error)
