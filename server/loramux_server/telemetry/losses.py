"""The training losses of jobs since the server started, as curves of bounded length."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..core.jobs import JobState, TrainEvent, TrainEventType

MOST_POINTS = 64


@dataclass(slots=True)
class _Curve:
    """Means of stretches of ``stride`` steps each."""

    stride: int = 1
    sums: list[float] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    first: int = 0
    """The step that the curve begins with."""

    def add(self, step: int, loss: float) -> None:
        if not self.counts or step < self.first:
            self.stride, self.first = 1, step
            self.sums, self.counts = [], []
        place = (step - self.first) // self.stride
        if place < len(self.sums) - 1:  # done again after an interruption
            del self.sums[place:], self.counts[place:]
        while place >= MOST_POINTS:
            self._halve()
            place = (step - self.first) // self.stride
        while place >= len(self.sums):
            self.sums.append(0.0)
            self.counts.append(0)
        self.sums[place] += loss
        self.counts[place] += 1

    def _halve(self) -> None:
        self.stride *= 2
        self.sums = [sum(self.sums[i : i + 2]) for i in range(0, len(self.sums), 2)]
        self.counts = [sum(self.counts[i : i + 2]) for i in range(0, len(self.counts), 2)]

    @property
    def means(self) -> tuple[float, ...]:
        return tuple(total / count for total, count in zip(self.sums, self.counts, strict=True) if count)


class LossCurves:
    """Keeps the curve of each job that has not ended."""

    def __init__(self) -> None:
        self._curves: dict[str, _Curve] = {}

    def job_event(self, job_id: str, event: TrainEvent) -> None:
        """A job reported something."""
        if event.type is TrainEventType.STEP and "loss" in event.metrics:
            self._curves.setdefault(job_id, _Curve()).add(event.step, event.metrics["loss"])

    def job_moved(self, job_id: str, new: JobState) -> None:
        """A job moved."""
        if new.final:
            self._curves.pop(job_id, None)

    def of(self, job_id: str) -> tuple[float, ...]:
        """Losses of a job, oldest first, at most ``MOST_POINTS``."""
        curve = self._curves.get(job_id)
        return () if curve is None else curve.means
