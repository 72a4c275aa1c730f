"""The spans of a training job: one for each stretch of it, below the span of the call that created it.

A job lasts longer than a process may. So each stretch is a span of its own, made when it ends, by the server that ends
it, and the call's trace context, which is stored with the job, holds them together.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from opentelemetry.trace import StatusCode, Tracer

from ...core.jobs import JobState
from ...core.observing.observer import JobMoved, NullObserver
from .contexts import context_of, nanoseconds

STRETCHES = {
    JobState.QUEUED: "job queue",
    JobState.RUNNING: "job train",
    JobState.PAUSED: "job pause",
    JobState.EVALUATING: "job evaluate",
    JobState.PUBLISHING: "job publish",
}
"""By the state that a job leaves."""
VALIDATE = "job validate"


class JobSpans(NullObserver):
    """An observer that makes a span of each stretch of a job."""

    def __init__(self, tracer: Tracer, clock: Callable[[], float] = time.time) -> None:
        self._tracer = tracer
        self._opened = clock()
        self._since: dict[str, float] = {}  # when the jobs that are not over came to their states

    def job_moved(self, event: JobMoved) -> None:
        since = self._since.pop(event.job_id, None)
        if not event.new.final:
            self._since[event.job_id] = event.at
        if event.old is None:
            self._make(VALIDATE, event, event.at - event.validation)
        elif (name := STRETCHES.get(event.old)) is not None:
            self._make(name, event, self._began(event) if since is None else since)

    def _began(self, event: JobMoved) -> float:
        """When a stretch began that this server did not see begin: with the job, or no earlier than this server."""
        first = event.old is JobState.QUEUED and event.attempt <= 1
        return event.created if first else min(self._opened, event.at)

    def _make(self, name: str, event: JobMoved, begin: float) -> None:
        span = self._tracer.start_span(
            name,
            context_of(event.trace),
            attributes={
                "loramux.job.id": event.job_id,
                "loramux.job.adapter": event.adapter or event.name,
                "loramux.job.attempt": event.attempt,
                "loramux.job.step": event.step,
                "loramux.job.next": event.new.value,
                "loramux.tenant": event.tenant,
            },
            start_time=nanoseconds(begin),
        )
        if event.new is JobState.FAILED:
            span.set_attribute("error.type", event.error_code)
            span.set_status(StatusCode.ERROR)
        span.end(nanoseconds(event.at))
