"""An observer that writes down what it is told."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from loramux_server.core.jobs import JobState, TrainEvent
from loramux_server.core.observer import RequestFinished, RequestStarted
from loramux_server.core.types import Stack


@dataclass
class Recorder:
    started: list[RequestStarted] = field(default_factory=list)
    finished: list[RequestFinished] = field(default_factory=list)
    first: list[tuple[str, float]] = field(default_factory=list)
    counts: list[tuple[int, float | None]] = field(default_factory=list)
    events: list[TrainEvent] = field(default_factory=list)
    states: list[tuple[JobState | None, JobState]] = field(default_factory=list)
    deleted: list[tuple[str, frozenset[str]]] = field(default_factory=list)

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

    def job_state(self, job_id: str, old: JobState | None, new: JobState) -> None:
        self.states.append((old, new))

    def adapter_deleted(self, name: str, keeps: Collection[str]) -> None:
        self.deleted.append((name, frozenset(keeps)))
