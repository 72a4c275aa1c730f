"""Reports a job's steps and evaluations so that each is among the job's events exactly once, after any crash."""

from __future__ import annotations

from collections import deque
from dataclasses import replace

from ...core.background import Report
from ...core.jobs import Stored, TrainEvent, TrainEventType
from .checkpoint import MAX_REPORTED


class ReportedProgress:
    """Passes reports on, and notes how far they tell that the job is."""

    def __init__(self, report: Report, stored: Stored | None) -> None:
        """``stored``: what the front has stored before this attempt."""
        self.inner = report
        self.stored = stored or Stored()
        """The last steps that were reported, by this attempt or earlier ones."""
        self._step, self._total = self.stored.step, 0

    def __call__(self, event: TrainEvent) -> None:
        self._step, self._total = event.step, event.total_steps
        if event.type is TrainEventType.STEP:
            self.stored = replace(self.stored, step=max(event.step, self.stored.step))
        if event.type is TrainEventType.EVALUATION:
            self.stored = replace(self.stored, evaluation=max(event.step, self.stored.evaluation))
        self.inner(event)

    def message(self, text: str) -> None:
        """Report something that is worth telling at the present step."""
        self(TrainEvent(TrainEventType.MESSAGE, text, None, self._step, self._total))


class StepReporter:
    """Reports what the front has not stored yet, and keeps the latest reports for the next checkpoint."""

    def __init__(self, report: Report, stored: Stored | None, earlier: tuple[TrainEvent, ...]) -> None:
        """``earlier`` are the reports in the checkpoint that the job resumes from, oldest first.

        Those that the front has not stored were lost on their way and are sent again. Steps that are done again after
        the checkpoint are not reported twice. ``stored`` None: report every step from now on.
        """
        self._report = report
        self._stored = stored or Stored()
        self._events: deque[TrainEvent] = deque(earlier, MAX_REPORTED)
        if stored is not None:
            for event in earlier:
                self._send(event)

    @property
    def events(self) -> tuple[TrainEvent, ...]:
        """The latest reports, oldest first."""
        return tuple(self._events)

    def report(self, event: TrainEvent) -> None:
        """Report a step, or an evaluation during training."""
        self._events.append(event)
        self._send(event)
        if event.type is TrainEventType.STEP and event.step == self._stored.step:
            message = f"step {event.step} is reached again"
            self._report(TrainEvent(TrainEventType.MESSAGE, message, None, event.step, event.total_steps))

    def _send(self, event: TrainEvent) -> None:
        stored = self._stored.step if event.type is TrainEventType.STEP else self._stored.evaluation
        if event.step > stored:
            self._report(event)
