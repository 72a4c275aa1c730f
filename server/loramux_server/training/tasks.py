"""Training jobs as background tasks of the engine loop."""

from __future__ import annotations

import logging
from collections.abc import Callable

from ..core.background import StartTask
from ..core.jobs import TrainCommand, TrainEvent
from ..model.resident import ResidentBase
from .pace import Pace
from .selftest import gradient_fault
from .trainer import train

log = logging.getLogger(__name__)


class TrainingTask:
    """A training run, advanced piece by piece."""

    def __init__(self, base: ResidentBase, command: TrainCommand, report: Callable[[TrainEvent], object]) -> None:
        self._base, self._pace = base, Pace()
        self._run = train(base, command, report, self._pace)
        self.nbytes = 0

    def advance(self, seconds: float | None) -> bool:
        self._pace.seconds = seconds
        try:
            self.nbytes = next(self._run)
        except StopIteration:
            return False
        return True

    def close(self) -> None:
        self._run.close()
        self._base.release()
        self.nbytes = 0


def make_tasks(base: ResidentBase) -> StartTask:
    """How the engine starts jobs on ``base``. Tries once whether gradients pass through it; without, jobs fail."""
    fault = gradient_fault(base)
    if fault is not None:
        log.error("no training: %s", fault.message)

    def start(command: TrainCommand, report: Callable[[TrainEvent], object]) -> TrainingTask:
        if fault is not None:
            raise fault
        return TrainingTask(base, command, report)

    return start
