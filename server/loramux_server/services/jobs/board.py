"""Where jobs stand: every change goes through here to the store, and from there to its watchers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Unpack

from ...core.callers.principal import Viewer
from ...core.jobs import JobRequest, JobState, TrainEvent, TrainEventType
from ...core.notes import Note
from ...core.observing.observer import JobMoved, NullObserver, Observer
from ...store.jobs.table import Move
from ...store.records import EventRecord, JobRecord
from ...store.store import Store
from ..common.shielding import to_the_end
from .watchers import Watchers

STEP_SECONDS = 0.25
"""Watchers hear of steps this often at most: each look at the store writes what waits there."""


class JobBoard:
    """The jobs of the store, with news. Shared by the training service and the runner; belongs to one event loop."""

    def __init__(self, store: Store, observer: Observer | None = None) -> None:
        self._store = store
        self._observer = observer or NullObserver()
        self._watchers = Watchers(store.jobs.newest_events)
        self._late: dict[str, asyncio.TimerHandle] = {}
        self._running: dict[str, Callable[[], object]] = {}
        self.queued = asyncio.Event()
        """Set whenever a job came into the queue; the runner clears it."""

    async def create(
        self,
        request: JobRequest,
        donors: Mapping[str, str],
        notes: Sequence[Note],
        folder: Path,
        *,
        validation: float = 0.0,
    ) -> JobRecord:
        """Queue a job, whose own ``folder`` becomes; durable on return. ``validation``: seconds that its rows took."""
        record = await to_the_end(asyncio.to_thread(self._store.create_job, request, donors, notes, folder))
        self._observer.job_moved(_move(None, record, validation))
        self.queued.set()
        return record

    async def claim(self, lease_seconds: float) -> JobRecord | None:
        """Take the next job for this server, if one waits: it is RUNNING then, and the record has its fence."""
        record = await asyncio.to_thread(self._store.jobs.claim, self._store.state.id, lease_seconds)
        if record is not None:
            self.moved(JobState.QUEUED, record)
        return record

    async def append(self, job: JobRecord, event: TrainEvent) -> None:
        """Store an event that is no change of state, for the runner that claimed ``job``."""
        await asyncio.to_thread(self._store.jobs.append_event, job.id, event, job.fence)
        self._observer.job_event(job.id, job.request.name, job.request.tenant, event)
        self._tell(job.id, later=event.type is TrainEventType.STEP)

    async def move(self, job_id: str, new: JobState, **given: Unpack[Move]) -> JobRecord:
        """Take a job to a state; durable on return.

        Raises FAILED_PRECONDITION for a move that is not legal, ABORTED for a runner (``fence``) that lost the job.
        """
        old, record = await asyncio.to_thread(self._move, job_id, new, given)
        self.moved(old, record)
        return record

    def moved(self, old: JobState, record: JobRecord) -> None:
        """Report a move from ``old`` that another caller wrote."""
        self._observer.job_moved(_move(old, record))
        self._tell(record.id)
        if record.state is JobState.QUEUED:
            self.queued.set()

    def running(self, job_id: str, stop: Callable[[], object]) -> None:
        """A job runs from now on: ``stop`` is called when it shall not any more."""
        self._running[job_id] = stop

    def ended(self, job_id: str) -> None:
        """A job does not run any more."""
        self._running.pop(job_id, None)

    def interrupt(self, job_id: str) -> None:
        """Stop the work on a job, if there is any. Its row must say why by now."""
        if (stop := self._running.get(job_id)) is not None:
            stop()

    async def watch(self, job_id: str, viewer: Viewer, after: int) -> AsyncGenerator[EventRecord]:
        """Events with numbers above ``after``: those stored, then live ones; ends after one with a final state."""
        with self._watchers.watching(job_id) as news:
            while True:
                news.clear()
                # Asked before the events are: the event of a state that is final by then is among them.
                final = (await asyncio.to_thread(self._store.jobs.get, job_id, viewer)).state.final
                found = await asyncio.to_thread(self._store.jobs.events, job_id, after, viewer=viewer)
                for record in found:
                    after = record.sequence
                    yield record
                if found:
                    continue
                if final:
                    return
                await news.wait()

    def _move(self, job_id: str, new: JobState, given: Move) -> tuple[JobState, JobRecord]:
        self._store.jobs.flush()
        old = self._store.jobs.get(job_id, given.get("viewer")).state
        record = self._store.jobs.move(job_id, new, **given)
        if new is JobState.CANCELLED:
            self._store.state.drop_job_folder(job_id)
        return old, record

    def _tell(self, job_id: str, *, later: bool = False) -> None:
        if job_id not in self._watchers:
            return
        if later:
            if job_id not in self._late:
                self._late[job_id] = asyncio.get_running_loop().call_later(STEP_SECONDS, self._tell, job_id)
            return
        with suppress(KeyError):
            self._late.pop(job_id).cancel()
        self._watchers.tell(job_id)


def _move(old: JobState | None, record: JobRecord, validation: float = 0.0) -> JobMoved:
    return JobMoved(
        job_id=record.id,
        name=record.request.name,
        tenant=record.request.tenant,
        old=old,
        new=record.state,
        at=record.updated,
        created=record.created,
        attempt=record.attempts,
        step=record.step,
        total_steps=record.total_steps,
        metrics=record.metrics,
        adapter=record.adapter,
        error_code=record.error_code,
        error=record.error,
        trace=record.request.trace,
        validation=validation,
    )
