"""An observer that writes down what it is told."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from loramux_server.core.jobs import JobState, TrainEvent
from loramux_server.core.observing.observer import JobMoved, RequestFinished, RequestStarted
from loramux_server.core.types import Stack


@dataclass
class Recorder:
    started: list[RequestStarted] = field(default_factory=list)
    finished: list[RequestFinished] = field(default_factory=list)
    first: list[tuple[str, float]] = field(default_factory=list)
    counts: list[tuple[int, float | None]] = field(default_factory=list)
    events: list[TrainEvent] = field(default_factory=list)
    moves: list[JobMoved] = field(default_factory=list)
    deleted: list[tuple[str, frozenset[str]]] = field(default_factory=list)

    @property
    def states(self) -> list[tuple[JobState | None, JobState]]:
        """The moves of jobs, from state to state."""
        return [(move.old, move.new) for move in self.moves]

    def request_started(self, event: RequestStarted) -> None:
        self.started.append(event)

    def answered(self, tenant: str, stack: Stack, seconds: float) -> None:
        self.first.append((tenant, seconds))

    def tokens(self, tenant: str, stack: Stack, count: int, interval: float | None) -> None:
        self.counts.append((count, interval))

    def request_finished(self, event: RequestFinished) -> None:
        self.finished.append(event)

    def job_event(self, job_id: str, name: str, tenant: str, event: TrainEvent) -> None:
        self.events.append(event)

    def job_moved(self, event: JobMoved) -> None:
        self.moves.append(event)

    def adapter_deleted(self, name: str, keeps: Collection[str]) -> None:
        self.deleted.append((name, frozenset(keeps)))
