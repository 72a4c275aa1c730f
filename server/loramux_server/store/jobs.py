"""The job table: training jobs, their states and their events. What was answered survives a crash."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Row

from ..core.errors import Code, Error
from ..core.failpoints import reach
from ..core.jobs import JobState, TrainEvent, TrainEventType, check_move
from . import job_rows as rows
from .database import Database
from .events import EventLog
from .paging import check_page_size, make_token, read_token
from .records import EventRecord, JobRecord, NewJob
from .schema import jobs as j

_INTERRUPTED = (JobState.RUNNING, JobState.EVALUATING, JobState.PUBLISHING)


class JobTable:
    """Jobs of all tenants. Thread-safe.

    ``tenant`` None means the server itself, which sees every job; another tenant's job is NOT_FOUND.
    """

    def __init__(self, database: Database, now: Callable[[], float] = time.time) -> None:
        self._db, self._now = database, now
        self._log = EventLog(database, now)

    def create(self, new: NewJob, state: JobState = JobState.QUEUED) -> JobRecord:
        """Add a job; durable on return. The owner's same idempotency key gives the job it made before.

        Raises ALREADY_EXISTS when that job was asked for with other settings.
        """
        now = self._now()
        job_id = f"job-{uuid.uuid4().hex[:20]}"
        with self._db.write("job.create") as connection:
            if new.idempotency_key and (row := rows.by_key(connection, new.owner, new.idempotency_key)) is not None:
                record = rows.record(row)
                if record.request != new:
                    raise Error(
                        Code.ALREADY_EXISTS,
                        f"idempotency_key {new.idempotency_key[:80]!r} was used for job {record.id} with other "
                        "settings; use a new key",
                        reason="IDEMPOTENCY_KEY_REUSED",
                    )
                return record
            seq = rows.insert(connection, job_id, new, state, now)
            event = TrainEvent(TrainEventType.STATE, state=state, message=f"job is {state.value}")
            self._log.write(connection, seq, [event])
            row = rows.by_seq(connection, seq)
        return rows.record(row)

    def get(self, job_id: str, tenant: str | None = None) -> JobRecord:
        """A job as it stands."""
        with self._db.read() as connection:
            return rows.record(_need(connection, job_id, tenant))

    def list(
        self, tenant: str | None = None, *, state: JobState | None = None, page_size: int = 100, page_token: str = ""
    ) -> tuple[tuple[JobRecord, ...], str]:
        """A page of jobs, newest first, and the token of the next page (empty: none)."""
        check_page_size(page_size)
        before = read_token(page_token, int)
        query = sa.select(j).order_by(j.c.seq.desc()).limit(page_size + 1)
        if tenant is not None:
            query = query.where(j.c.owner == tenant)
        if state is not None:
            query = query.where(j.c.state == state.value)
        if before is not None:
            query = query.where(j.c.seq < before)
        with self._db.read() as connection:
            found = connection.execute(query).all()
        page = found[:page_size]
        return tuple(rows.record(row) for row in page), make_token(page[-1].seq) if len(found) > page_size else ""

    def counts(self) -> dict[JobState, int]:
        """How many jobs there are in each state that has any."""
        with self._db.read() as connection:
            found = connection.execute(sa.select(j.c.state, sa.func.count()).group_by(j.c.state)).all()
        return {JobState(state): count for state, count in found}

    def move(
        self,
        job_id: str,
        new: JobState,
        *,
        message: str = "",
        error: Error | None = None,
        adapter: str = "",
        tenant: str | None = None,
    ) -> JobRecord:
        """Take a job to a state, with the event that tells it; durable on return.

        Raises FAILED_PRECONDITION for a move that is not legal. ``error`` says why it failed, ``adapter`` what it
        published.
        """
        self._log.flush()
        with self._db.write("job.move") as connection:
            return self.move_within(
                connection, job_id, new, message=message, error=error, adapter=adapter, tenant=tenant
            )

    def move_within(
        self,
        connection: Connection,
        job_id: str,
        new: JobState,
        *,
        message: str = "",
        error: Error | None = None,
        adapter: str = "",
        tenant: str | None = None,
    ) -> JobRecord:
        """``move`` as part of a transaction of the caller, who calls ``flush`` before it."""
        row = _need(connection, job_id, tenant)
        check_move(job_id, JobState(row.state), new)
        now = self._now()
        values: dict[str, Any] = {"state": new.value, "updated": now}
        if new is JobState.RUNNING:
            values.update(attempts=row.attempts + 1, started=row.started or now)
        if new.final:
            values["finished"] = now
        if error is not None:
            values.update(error_code=error.code.value, error=error.message)
        if adapter:
            values["adapter"] = adapter
        connection.execute(j.update().where(j.c.seq == row.seq).values(**values))
        text = message or (error.message if error else f"job is {new.value}")
        self._log.write(connection, row.seq, [TrainEvent(TrainEventType.STATE, message=text, state=new)])
        reach("job.moved")
        return rows.record(rows.by_seq(connection, row.seq))

    def append_event(self, job_id: str, event: TrainEvent) -> None:
        """Store an event. Steps may wait up to a quarter of a second; other events are durable on return.

        Changes of state are told by ``move``: a STATE event here is refused with ``ValueError``.
        """
        if event.type is TrainEventType.STATE:
            raise ValueError("a change of state goes through move()")
        self._log.append(job_id, event)

    def events(
        self, job_id: str, after: int = 0, *, tenant: str | None = None, limit: int = 1000
    ) -> tuple[EventRecord, ...]:
        """The next events of a job after a sequence number, oldest first, those that still wait included."""
        self._log.flush()
        with self._db.read() as connection:
            row = _need(connection, job_id, tenant)
            return self._log.read(connection, row.seq, job_id, after, limit)

    def next_queued(self) -> JobRecord | None:
        """The job that has waited longest, if one waits."""
        query = sa.select(j).where(j.c.state == JobState.QUEUED.value).order_by(j.c.seq).limit(1)
        with self._db.read() as connection:
            row = connection.execute(query).first()
        return None if row is None else rows.record(row)

    def requeue_interrupted(self) -> tuple[JobRecord, ...]:
        """At start: queue again what ran when the server died, with an event that says so."""
        states = [state.value for state in _INTERRUPTED]
        with self._db.write("job.requeue") as connection:
            found = connection.execute(sa.select(j.c.id).where(j.c.state.in_(states)).order_by(j.c.seq)).all()
            return tuple(
                self.move_within(
                    connection, row.id, JobState.QUEUED, message="the server stopped while the job ran; queued again"
                )
                for row in found
            )

    def flush(self) -> None:
        """Write the step events that wait."""
        self._log.flush()


def _need(connection: Connection, job_id: str, tenant: str | None) -> Row[Any]:
    row = rows.by_id(connection, job_id)
    if row is None or (tenant is not None and row.owner != tenant):
        raise Error(Code.NOT_FOUND, f"job {job_id[:80]!r} not found", reason="JOB_NOT_FOUND")
    return row
