"""Events of jobs: numbered without gaps, step events written in batches, all others at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from threading import Lock
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy import Connection, Row

from ...core.callers.usage import Amounts, UsageKey, UsageMethod, day_of
from ...core.jobs import TrainEvent, TrainEventType
from ...telemetry.labels import adapter_label
from ..database import Database, read_values
from ..records import EventRecord
from ..schema import job_events as e
from ..schema import jobs as j
from ..usage import add_usage

BATCH_SECONDS = 0.25
MOST_EVENTS = 100_000
"""Events that are kept of a job."""


class EventLog:
    """The event table and the step events that are not in it yet. Thread-safe.

    Numbers are given when events are written, inside the transaction, so they have no gaps whatever fails. Of each job
    the last ``most`` events are kept, and the last one of each type. A hundredth goes at a time, so that what is
    too old is not looked for with every write.
    """

    def __init__(self, database: Database, now: Callable[[], float], most: int = MOST_EVENTS) -> None:
        self._db, self._now, self._most = database, now, most
        self._lock = Lock()
        self._waiting: list[tuple[str, int | None, float, TrainEvent]] = []
        self._written = float("-inf")  # on the monotonic clock

    def append(self, job_id: str, event: TrainEvent, fence: int | None = None) -> None:
        """Store an event of a job, after those that wait; it is dropped if the job's fence is another by then."""
        with self._lock:
            self._waiting.append((job_id, fence, self._now(), event))
            urgent = event.type is not TrainEventType.STEP or time.monotonic() - self._written >= BATCH_SECONDS
            if urgent:
                self._write_waiting()

    def flush(self) -> None:
        """Write what waits."""
        with self._lock:
            self._write_waiting()

    def write(self, connection: Connection, job_seq: int, events: Sequence[TrainEvent]) -> None:
        """Write events of one job in the caller's transaction (which ``flush`` comes before, to keep the order)."""
        now = self._now()
        self._insert(connection, job_seq, [(now, event) for event in events])

    def read(
        self, connection: Connection, job_seq: int, job_id: str, after: int, limit: int
    ) -> tuple[EventRecord, ...]:
        """Written events with numbers above ``after``, oldest first."""
        query = sa.select(e).where(e.c.job_seq == job_seq, e.c.sequence > after).order_by(e.c.sequence)
        return tuple(_record(job_id, row) for row in connection.execute(query.limit(limit)))

    def read_back(
        self, connection: Connection, job_seq: int, job_id: str, before: int | None, limit: int
    ) -> tuple[EventRecord, ...]:
        """Written events with numbers below ``before``, of all that there are if it is None; newest first."""
        query = sa.select(e).where(e.c.job_seq == job_seq).order_by(e.c.sequence.desc())
        if before is not None:
            query = query.where(e.c.sequence < before)
        return tuple(_record(job_id, row) for row in connection.execute(query.limit(limit)))

    def latest(self, connection: Connection, job_seq: int, kind: TrainEventType) -> TrainEvent | None:
        """The last written event of a kind."""
        query = (
            sa.select(e).where(e.c.job_seq == job_seq, e.c.type == kind.value).order_by(e.c.sequence.desc()).limit(1)
        )
        row = connection.execute(query).first()
        return None if row is None else _event(row.type, row.body)

    def _write_waiting(self) -> None:
        if not self._waiting:
            return
        by_job: dict[str, list[tuple[int | None, float, TrainEvent]]] = {}
        for job_id, fence, at, event in self._waiting:
            by_job.setdefault(job_id, []).append((fence, at, event))
        with self._db.write("job.events") as connection:
            for job_id, waiting in by_job.items():
                row = connection.execute(
                    sa.select(j.c.seq, j.c.owner, j.c.name, j.c.fence).where(j.c.id == job_id)
                ).first()
                events = [(at, event) for fence, at, event in waiting if row and fence in (None, row.fence)]
                if row is not None and events:
                    self._insert(connection, row.seq, events)
                    self._note_progress(connection, row.seq, events)
                    add_usage(connection, _trained(row.owner, row.name, events))
        self._waiting = []
        self._written = time.monotonic()

    def _insert(self, connection: Connection, job_seq: int, events: Sequence[tuple[float, TrainEvent]]) -> None:
        last = connection.scalar(sa.select(sa.func.max(e.c.sequence)).where(e.c.job_seq == job_seq)) or 0
        connection.execute(
            e.insert(),
            [
                {"job_seq": job_seq, "sequence": last + i, "at": at, "type": event.type.value, "body": _body(event)}
                for i, (at, event) in enumerate(events, start=1)
            ],
        )
        newest, few = last + len(events), self._most // 100
        if (oldest := newest - self._most + few) > 0 and newest // max(1, few) != last // max(1, few):
            of_job = e.c.job_seq == job_seq
            kept = sa.select(sa.func.max(e.c.sequence)).where(of_job).group_by(e.c.type)
            connection.execute(e.delete().where(of_job, e.c.sequence <= oldest, e.c.sequence.not_in(kept)))

    def _note_progress(self, connection: Connection, job_seq: int, events: Sequence[tuple[float, TrainEvent]]) -> None:
        """Keep the latest numbers in the job's row, so that a list of jobs needs no events."""
        row = connection.execute(sa.select(j.c.metrics, j.c.step, j.c.total_steps).where(j.c.seq == job_seq)).one()
        metrics, step, total = dict(row.metrics), row.step, row.total_steps
        for _, event in events:
            metrics.update(event.metrics)
            total = event.total_steps or total
            if event.type is not TrainEventType.CHECKPOINT:  # that one may report a step before the latest
                step = event.step or step
        connection.execute(
            j.update()
            .where(j.c.seq == job_seq)
            .values(metrics=metrics, step=step, total_steps=total, updated=events[-1][0])
        )


def _trained(tenant: str, adapter: str, events: Sequence[tuple[float, TrainEvent]]) -> dict[UsageKey, Amounts]:
    """The tokens of the steps among the events. A step that is computed again after a crash has no second event."""
    found: dict[UsageKey, Amounts] = {}
    for at, event in events:
        if event.type is TrainEventType.STEP and (tokens := int(event.metrics.get("tokens", 0))) > 0:
            key = UsageKey(day_of(at), tenant, adapter_label(adapter), UsageMethod.TRAIN)
            found[key] = found.get(key, Amounts()) + Amounts(trained_tokens=tokens)
    return found


def _body(event: TrainEvent) -> dict[str, Any]:
    return {name: value for name, value in msgspec.to_builtins(event).items() if value and name != "type"}


def _record(job_id: str, row: Row[Any]) -> EventRecord:
    return EventRecord(job_id, row.sequence, row.at, _event(row.type, row.body))


def _event(kind: str, body: dict[str, Any]) -> TrainEvent:
    return read_values({"type": kind} | body, TrainEvent)
