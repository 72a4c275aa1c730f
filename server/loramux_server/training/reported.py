"""What a run has reported of its steps, so that the job's events have each of them once, whatever was interrupted."""

from __future__ import annotations

from collections import deque

from ..core.background import Report
from ..core.jobs import Stored, TrainEvent, TrainEventType
from .checkpoint import MOST_TOLD


class Told:
    """Reports steps and evaluations to a front that has stored some of them, and keeps them for the next checkpoint."""

    def __init__(self, report: Report, stored: Stored | None, earlier: tuple[TrainEvent, ...]) -> None:
        """``earlier`` are the reports that the checkpoint covers which the run goes on from.

        Those of them that were lost on their way are made again, and steps that are done again are not reported twice.
        ``stored`` None: nothing is known of the job's events, and what is done from now on is reported.
        """
        self._report = report
        self._stored = stored or Stored()
        self._events: deque[TrainEvent] = deque(earlier, MOST_TOLD)
        if stored is not None:
            for event in earlier:
                self._pass_on(event)

    @property
    def events(self) -> tuple[TrainEvent, ...]:
        """The latest reports, oldest first."""
        return tuple(self._events)

    def report(self, event: TrainEvent) -> None:
        """Report a step, or an evaluation during the run."""
        self._events.append(event)
        self._pass_on(event)
        if event.type is TrainEventType.STEP and event.step == self._stored.step:
            words = f"step {event.step} is reached again"
            self._report(TrainEvent(TrainEventType.MESSAGE, words, None, event.step, event.total_steps))

    def _pass_on(self, event: TrainEvent) -> None:
        known = self._stored.step if event.type is TrainEventType.STEP else self._stored.evaluation
        if event.step > known:
            self._report(event)
