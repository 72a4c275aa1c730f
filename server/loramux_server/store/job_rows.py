"""The SQL of the job table, and the way from settings to JSON and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Row

from ..core.jobs import JobState, TrainSpec
from ..core.notes import Note
from .records import JobRecord, NewJob, stacks_from_json, stacks_to_json
from .schema import jobs as j


def insert(connection: Connection, job_id: str, new: NewJob, state: JobState, now: float) -> int:
    """Add a job and return its row's number."""
    insert_job = (
        j.insert()
        .values(
            id=job_id,
            owner=new.owner,
            name=new.name,
            state=state.value,
            spec=asdict(new.spec),
            dataset_id=new.dataset_id,
            validation_dataset_id=new.validation_dataset_id,
            on_top_of=stacks_to_json(new.on_top_of),
            init_from=new.init_from,
            donors=new.donors,
            gate=new.gate,
            compare_prompt=new.compare_prompt,
            metadata=new.metadata,
            idempotency_key=new.idempotency_key or None,
            notes=[asdict(note) for note in new.notes],
            attempts=0,
            step=0,
            total_steps=0,
            metrics={},
            adapter="",
            error_code="",
            error="",
            created=now,
            updated=now,
        )
        .returning(j.c.seq)
    )
    return int(connection.execute(insert_job).scalar_one())


def by_id(connection: Connection, job_id: str, *, lock: bool = False) -> Row[Any] | None:
    """The row of a job, by the id that callers know; with ``lock`` nobody else changes it in this transaction."""
    query = sa.select(j).where(j.c.id == job_id)
    return connection.execute(query.with_for_update() if lock else query).first()


def by_seq(connection: Connection, seq: int) -> Row[Any]:
    """The row of a job that exists."""
    return connection.execute(sa.select(j).where(j.c.seq == seq)).one()


def by_key(connection: Connection, owner: str, key: str) -> Row[Any] | None:
    """The job that an owner made with an idempotency key."""
    return connection.execute(sa.select(j).where(j.c.owner == owner, j.c.idempotency_key == key)).first()


def unfinished(connection: Connection) -> list[tuple[str, dict[str, str]]]:
    """The jobs that may still run, by id, each with its donors."""
    query = sa.select(j.c.id, j.c.donors).where(j.c.state.not_in([s.value for s in JobState if s.final]))
    return [(row.id, row.donors or {}) for row in connection.execute(query.order_by(j.c.seq)).all()]


def donor_digests(connection: Connection) -> frozenset[str]:
    """Blobs that some unfinished job needs."""
    return frozenset(digest for _, donors in unfinished(connection) for digest in donors.values())


def turns(connection: Connection, at_work: Sequence[JobState]) -> list[int]:
    """The row numbers of each owner's oldest queued job, in the order in which they are taken.

    Owners with the fewest jobs at work come first, then those whose last job began longest ago, then by age.
    """
    owners = sa.select(j.c.owner).where(j.c.state == JobState.QUEUED.value)
    oldest = sa.func.min(sa.case((j.c.state == JobState.QUEUED.value, j.c.seq)))
    busy = sa.func.sum(sa.case((j.c.state.in_([state.value for state in at_work]), 1), else_=0))
    last = sa.func.coalesce(sa.func.max(j.c.started), 0.0)
    query = sa.select(oldest).where(j.c.owner.in_(owners)).group_by(j.c.owner).order_by(busy, last, oldest)
    return list(connection.execute(query).scalars())


def record(row: Row[Any]) -> JobRecord:
    """A row as a record."""
    request = NewJob(
        name=row.name,
        dataset_id=row.dataset_id,
        owner=row.owner,
        spec=spec_from_json(row.spec),
        validation_dataset_id=row.validation_dataset_id,
        on_top_of=stacks_from_json(row.on_top_of),
        init_from=row.init_from,
        donors=row.donors or {},
        gate=row.gate,
        compare_prompt=row.compare_prompt,
        metadata=row.metadata,
        idempotency_key=row.idempotency_key or "",
        notes=tuple(Note(**note) for note in row.notes or ()),
    )
    return JobRecord(
        id=row.id,
        request=request,
        state=JobState(row.state),
        created=row.created,
        updated=row.updated,
        started=row.started,
        finished=row.finished,
        attempts=row.attempts,
        step=row.step,
        total_steps=row.total_steps,
        metrics=row.metrics,
        adapter=row.adapter,
        error_code=row.error_code,
        error=row.error,
        gate_result=row.gate_result or "",
        fence=row.fence,
    )


def spec_from_json(found: dict[str, Any]) -> TrainSpec:
    """Settings as they were stored. Those that this version does not know are left out; new ones take defaults."""
    known = {field.name for field in fields(TrainSpec)}
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in found.items() if k in known}
    return TrainSpec(**values)
