"""The job table: training jobs, their states and their events. What was answered survives a crash."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final, TypedDict, Unpack

import sqlalchemy as sa
from sqlalchemy import Connection, Row

from ...core.callers.principal import Viewer
from ...core.errors import Code, Error
from ...core.jobs import JobRequest, JobState, JudgedRow, Stored, TrainEvent, TrainEventType, check_move
from ...core.notes import Note
from ...host.failpoints import reach
from ..database import Database
from ..paging import check_page_size, make_token, read_token, unknown_token
from ..quotas import check_job, resting
from ..records import EventRecord, JobRecord
from ..schema import job_events as e
from ..schema import jobs as j
from . import rows as rows
from .events import MOST_EVENTS, EventLog
from .idempotency import same_job

_AT_WORK = (JobState.RUNNING, JobState.EVALUATING, JobState.PUBLISHING)

MAX_REASON = 32
"""Characters of the column for reasons."""

REPLACED = "replaced_version"
"""Figure of a job's last event: the number of the version that the name meant when the result was published."""

LEASE_LOST: Final = "LEASE_LOST"
"""Reason of the error for a runner whose job was taken from it."""


class Move(TypedDict, total=False):
    """What may come with a change of a job's state."""

    message: str
    """What its event says; else the error's message, or the state."""
    metrics: dict[str, float]
    """Metrics of its event."""
    error: Error | None
    """Why the job failed."""
    adapter: str
    """What it published, ``name@version``."""
    gate_result: str
    """Why that was not promoted."""
    viewer: Viewer | None
    """Who must see the job; None: nobody in particular."""
    fence: int | None
    """The fence that the job must still have; None: any."""


class JobTable:
    """Jobs of all tenants. Thread-safe.

    ``viewer`` None means the server itself, which sees every job. Another tenant's job is NOT_FOUND, and so is one
    for an adapter that is not on the key's list. Whoever runs a job writes with the ``fence`` that :meth:`claim` gave
    it, and is refused (ABORTED, LEASE_LOST) once the job has changed hands: two runners never both write.
    """

    def __init__(
        self, database: Database, now: Callable[[], float] = time.time, most_events: int = MOST_EVENTS
    ) -> None:
        self._db, self._now = database, now
        self._log = EventLog(database, now, most_events)

    def create(
        self,
        request: JobRequest,
        state: JobState = JobState.QUEUED,
        *,
        donors: Mapping[str, str] | None = None,
        notes: Sequence[Note] = (),
        job_id: str = "",
    ) -> JobRecord:
        """Add a job; durable on return. The tenant's same idempotency key gives the job it made before.

        ``donors`` (reference -> digest) are the versions whose files stay until the job is final. Raises
        ALREADY_EXISTS when the key's job was asked for with other settings, RESOURCE_EXHAUSTED over the tenant's
        quota of queued jobs.
        """
        now = self._now()
        job_id = job_id or new_job_id()
        with self._db.write("job.create") as connection:
            if (made := _made_with(connection, request)) is not None:
                return made
            check_job(connection, request.tenant)
            seq = rows.insert(connection, job_id, request, state, donors or {}, notes, now)
            event = TrainEvent(TrainEventType.STATE, state=state, message=f"job is {state.value}")
            self._log.write(connection, seq, [event])
            row = rows.by_seq(connection, seq)
        return rows.record(row)

    def made_with(self, request: JobRequest) -> JobRecord | None:
        """The job that the request's idempotency key made, if any. Raises ALREADY_EXISTS as :meth:`create`."""
        with self._db.read() as connection:
            return _made_with(connection, request)

    def get(self, job_id: str, viewer: Viewer | None = None) -> JobRecord:
        """A job as it stands."""
        with self._db.read() as connection:
            return rows.record(_need(connection, job_id, viewer))

    def list(
        self,
        viewer: Viewer | None = None,
        *,
        states: Sequence[JobState] = (),
        name: str = "",
        page_size: int = 100,
        page_token: str = "",
        after: str = "",
    ) -> tuple[tuple[JobRecord, ...], str]:
        """A page of jobs, newest first, and the token of the next page (empty: none).

        Only those in one of ``states`` and for adapter ``name``, where these are given. Without a token the page may
        begin behind the job ``after``.
        """
        check_page_size(page_size)
        last = read_token(page_token)
        query = rows.JOBS.where(*rows.seen_by(viewer)).order_by(j.c.seq.desc()).limit(page_size + 1)
        if states:
            query = query.where(j.c.state.in_([state.value for state in states]))
        if name:
            query = query.where(j.c.name == name)
        with self._db.read() as connection:
            if last is not None:
                if (row := rows.by_id(connection, last, viewer)) is None:
                    raise unknown_token()
                query = query.where(j.c.seq < row.seq)
            elif after:
                query = query.where(j.c.seq < _need(connection, after, viewer).seq)
            found = connection.execute(query).all()
        page = found[:page_size]
        return tuple(rows.record(row) for row in page), make_token(page[-1].id) if len(found) > page_size else ""

    def counts(self, viewer: Viewer | None = None) -> dict[JobState, int]:
        """How many jobs there are in each state that has any."""
        query = sa.select(j.c.state, sa.func.count()).where(*rows.seen_by(viewer)).group_by(j.c.state)
        with self._db.read() as connection:
            found = connection.execute(query).all()
        return {JobState(state): count for state, count in found}

    def referenced_digests(self) -> frozenset[str]:
        """Blobs of the versions that jobs were created from and that may still be needed."""
        with self._db.read() as connection:
            return rows.donor_digests(connection)

    def move(self, job_id: str, new: JobState, **given: Unpack[Move]) -> JobRecord:
        """Take a job to a state, with the event that reports it; durable on return.

        Raises FAILED_PRECONDITION for a move that is not legal.
        """
        self._log.flush()
        with self._db.write("job.move") as connection:
            return self.move_within(connection, job_id, new, **given)

    def move_within(self, connection: Connection, job_id: str, new: JobState, **given: Unpack[Move]) -> JobRecord:
        """``move`` in a transaction of the caller, who calls ``flush`` before it."""
        row = _need(connection, job_id, given.get("viewer"), lock=True)
        _check_fence(row, given.get("fence"))
        check_move(job_id, JobState(row.state), new)
        if new is JobState.QUEUED and row.state == JobState.FAILED.value:
            check_job(connection, row.owner)  # resumed; paused ones are counted already
        now = self._now()
        values: dict[str, Any] = {"state": new.value, "updated": now}
        if new not in _AT_WORK:
            values.update(runner=None, lease_until=None, fence=row.fence + 1)
        if new is JobState.RUNNING:
            values.update(attempts=row.attempts + 1, started=row.started or now)
        values["finished"] = now if new.final else None
        if row.state == JobState.FAILED.value:
            values.update(error_code="", error="")
        if (error := given.get("error")) is not None:
            values.update(error_code=error.reason[:MAX_REASON], error=error.message)
        if adapter := given.get("adapter"):
            values.update(adapter=adapter, gate_result=given.get("gate_result", ""))
        connection.execute(j.update().where(j.c.seq == row.seq).values(**values))
        text = given.get("message") or (error.message if error else f"job is {new.value}")
        event = TrainEvent(TrainEventType.STATE, message=text, state=new, metrics=given.get("metrics", {}))
        self._log.write(connection, row.seq, [event])
        reach("job.moved")
        return rows.record(rows.by_seq(connection, row.seq))

    def append_event(self, job_id: str, event: TrainEvent, fence: int | None = None) -> None:
        """Store an event. Steps may wait up to a quarter of a second; other events are durable on return.

        Those of a runner that lost the job are dropped.
        Changes of state are reported by ``move``: a STATE event here is refused with ``ValueError``.
        """
        if event.type is TrainEventType.STATE:
            raise ValueError("a change of state goes through move()")
        self._log.append(job_id, event, fence)

    def events(
        self, job_id: str, after: int = 0, *, viewer: Viewer | None = None, limit: int = 1000
    ) -> tuple[EventRecord, ...]:
        """The next events of a job after a sequence number, oldest first, those that still wait included."""
        self._log.flush()
        with self._db.read() as connection:
            row = _need(connection, job_id, viewer)
            return self._log.read(connection, row.seq, job_id, after, limit)

    def events_back(
        self, job_id: str, before: int | None = None, *, viewer: Viewer | None = None, limit: int = 1000
    ) -> tuple[EventRecord, ...]:
        """The events of a job before a sequence number, newest first, those that still wait included."""
        self._log.flush()
        with self._db.read() as connection:
            row = _need(connection, job_id, viewer)
            return self._log.read_back(connection, row.seq, job_id, before, limit)

    def newest_events(self, jobs: Collection[str]) -> dict[str, int]:
        """The number of the last written event of each of these jobs; those that have none are left out."""
        last = sa.select(sa.func.max(e.c.sequence)).where(e.c.job_seq == j.c.seq).scalar_subquery()
        with self._db.read() as connection:
            rows = connection.execute(sa.select(j.c.id, last).where(j.c.id.in_(jobs)))
            return {id: sequence for id, sequence in rows if sequence is not None}

    def stored(self, job_id: str) -> Stored:
        """How far the stored events of a job report its steps and evaluations."""
        self._log.flush()
        with self._db.read() as connection:
            row = _need(connection, job_id, None)
            step = self._log.latest(connection, row.seq, TrainEventType.STEP)
            evaluation = self._log.latest(connection, row.seq, TrainEventType.EVALUATION)
        return Stored(step.step if step else 0, evaluation.step if evaluation else 0)

    def outcome(self, job_id: str) -> tuple[tuple[JudgedRow, ...], int | None]:
        """Examples of what held-out rows were answered, and the version that the name meant before the job's own."""
        with self._db.read() as connection:
            seq = _need(connection, job_id, None).seq
            answered = self._log.latest(connection, seq, TrainEventType.EVALUATION)
            last = self._log.latest(connection, seq, TrainEventType.STATE)
        replaced = last.metrics.get(REPLACED) if last is not None else None
        return answered.answers if answered else (), None if replaced is None else int(replaced)

    def claim(self, runner: str, lease_seconds: float) -> JobRecord | None:
        """Take the next job: RUNNING from now on, leased to ``runner`` and with a new fence.

        Owners take turns, each with its oldest job: see :func:`.job_rows.turns`. The jobs of those whose quota is
        used up stay in the queue, and an event of the oldest says why.
        """
        self._log.flush()
        with self._db.write("job.claim") as connection:
            rest = resting(connection, _AT_WORK, self._now())
            for owner, reason in rest.items():
                self._explain(connection, owner, reason)
            queued = rows.JOBS.where(j.c.state == JobState.QUEUED.value, j.c.owner.not_in(rest))
            queued = queued.order_by(j.c.seq).limit(1)
            # Servers that share a database pass over what another is just taking; SQLite has one writer anyway.
            queued = queued.with_for_update(skip_locked=True)
            wanted = [queued.where(j.c.seq == seq) for seq in rows.turns(connection, _AT_WORK)]
            found = (connection.execute(query).first() for query in [*wanted, queued])
            row = next((row for row in found if row is not None), None)
            if row is None:
                return None
            self.move_within(connection, row.id, JobState.RUNNING, message="reading the data")
            lease = {"runner": runner, "lease_until": self._now() + lease_seconds, "fence": row.fence + 1}
            connection.execute(j.update().where(j.c.seq == row.seq).values(**lease))
            return rows.record(rows.by_seq(connection, row.seq))

    def _explain(self, connection: Connection, owner: str, reason: str) -> None:
        """Tell the oldest queued job of an owner why it waits, once."""
        query = sa.select(j.c.seq, j.c.id).where(j.c.owner == owner, j.c.state == JobState.QUEUED.value)
        row = connection.execute(query.order_by(j.c.seq).limit(1)).one()
        last = self._log.latest(connection, row.seq, TrainEventType.MESSAGE)
        if last is None or last.message != reason:
            self._log.write(connection, row.seq, [TrainEvent(TrainEventType.MESSAGE, reason)])

    def add_donors(self, job_id: str, donors: Mapping[str, str], fence: int) -> None:
        """Keep the files of further versions (reference -> digest) until the job is final."""
        if not donors:
            return
        with self._db.write("job.donors") as connection:
            row = _need(connection, job_id, None, lock=True)
            _check_fence(row, fence)
            both = dict(donors) | (row.donors or {})
            connection.execute(j.update().where(j.c.seq == row.seq).values(donors=both))

    def renew(self, job_id: str, fence: int, lease_seconds: float) -> None:
        """Keep a claimed job for another ``lease_seconds``. Raises ABORTED when it is not the caller's any more."""
        with self._db.write("job.renew") as connection:
            row = _need(connection, job_id, None, lock=True)
            _check_fence(row, fence)
            connection.execute(j.update().where(j.c.seq == row.seq).values(lease_until=self._now() + lease_seconds))

    def requeue_interrupted(self, runner: str | None = None) -> tuple[JobRecord, ...]:
        """Queue again what ``runner`` ran (at its start, so it runs nothing now) and all whose lease is over.

        None means every runner. Each job gets an event that says so.
        """
        states = [state.value for state in _AT_WORK]
        query = sa.select(j.c.id).where(j.c.state.in_(states)).order_by(j.c.seq)
        if runner is not None:
            over = sa.or_(j.c.lease_until.is_(None), j.c.lease_until < self._now())
            query = query.where(sa.or_(j.c.runner == runner, over))
        with self._db.write("job.requeue") as connection:
            return tuple(
                self.move_within(
                    connection, row.id, JobState.QUEUED, message="the server stopped while the job ran; queued again"
                )
                for row in connection.execute(query).all()
            )

    def flush(self) -> None:
        """Write the step events that wait."""
        self._log.flush()


def new_job_id() -> str:
    """An id that no job has."""
    return f"job-{uuid.uuid4().hex[:20]}"


def _need(connection: Connection, job_id: str, viewer: Viewer | None, *, lock: bool = False) -> Row[Any]:
    row = rows.by_id(connection, job_id, viewer, lock=lock)
    if row is None:
        raise Error(Code.NOT_FOUND, f"job {job_id[:80]!r} not found", reason="JOB_NOT_FOUND")
    return row


def _check_fence(row: Row[Any], fence: int | None) -> None:
    if fence is not None and row.fence != fence:
        raise Error(Code.ABORTED, f"the lease of job {row.id} was lost to another server", reason=LEASE_LOST)


def _made_with(connection: Connection, request: JobRequest) -> JobRecord | None:
    key = request.idempotency_key
    row = rows.by_key(connection, request.tenant, key) if key else None
    if row is None:
        return None
    made = rows.record(row)
    if not same_job(request, made.request):
        raise Error(
            Code.ALREADY_EXISTS,
            f"idempotency_key {key[:80]!r} was used for job {made.id} with other settings; use a new key",
            reason="IDEMPOTENCY_KEY_REUSED",
        )
    return made
