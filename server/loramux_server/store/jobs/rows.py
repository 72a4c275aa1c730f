"""The SQL of the job table, and the way from records to rows and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy import Connection, Row

from ...core.callers.principal import Viewer, names_of, tenant_of
from ...core.jobs import JobRequest, JobState
from ...core.notes import Note
from ..database import read_row
from ..records import JobRecord
from ..schema import job_events as e
from ..schema import jobs as j

_LAST = sa.select(sa.func.coalesce(sa.func.max(e.c.sequence), 0)).where(e.c.job_seq == j.c.seq).scalar_subquery()
JOBS = sa.select(j, _LAST.label("last_sequence"))
"""Rows that :func:`record` takes."""


def insert(
    connection: Connection,
    job_id: str,
    request: JobRequest,
    state: JobState,
    donors: Mapping[str, str],
    notes: Sequence[Note],
    now: float,
) -> int:
    """Add a job and return its row's number."""
    insert_job = (
        j.insert()
        .values(
            id=job_id,
            owner=request.tenant,
            name=request.name,
            state=state.value,
            request=msgspec.to_builtins(request),
            donors=dict(donors),
            idempotency_key=request.idempotency_key or None,
            notes=msgspec.to_builtins(notes),
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


def seen_by(viewer: Viewer | None) -> Iterator[sa.ColumnElement[bool]]:
    """What narrows a query to the jobs of a viewer: its tenant's, for adapters that its key may use. None sees all.

    A part of the query, so that another tenant's job is never read, and takes the time of an absent one.
    """
    if viewer is None:
        return
    yield j.c.owner == tenant_of(viewer)
    if (names := names_of(viewer)) is not None:
        yield j.c.name.in_(names)


def by_id(connection: Connection, job_id: str, viewer: Viewer | None, *, lock: bool = False) -> Row[Any] | None:
    """The row of a job, by the id that callers know; with ``lock`` no other transaction changes it meanwhile."""
    query = JOBS.where(j.c.id == job_id, *seen_by(viewer))
    return connection.execute(query.with_for_update() if lock else query).first()


def by_seq(connection: Connection, seq: int) -> Row[Any]:
    """The row of a job that exists."""
    return connection.execute(JOBS.where(j.c.seq == seq)).one()


def by_key(connection: Connection, owner: str, key: str) -> Row[Any] | None:
    """The job that an owner made with an idempotency key."""
    return connection.execute(JOBS.where(j.c.owner == owner, j.c.idempotency_key == key)).first()


def unfinished(connection: Connection) -> list[tuple[str, dict[str, str]]]:
    """The jobs that may still run, by id, each with its donors."""
    query = sa.select(j.c.id, j.c.donors).where(j.c.state.not_in([s.value for s in JobState if s.final]))
    return [(row.id, row.donors or {}) for row in connection.execute(query.order_by(j.c.seq)).all()]


def using_dataset(connection: Connection, dataset_id: str, owner: str) -> Row[Any] | None:
    """The oldest job of an owner that may still run and reads a dataset."""
    request = j.c.request
    uses = sa.or_(
        request["dataset_id"].as_string() == dataset_id,
        request["validation_dataset_id"].as_string() == dataset_id,
        request[("spec", "replay")].as_string() == dataset_id,
        request["compare_documents"].as_string() == dataset_id,
    )
    unfinished = j.c.state.not_in([s.value for s in JobState if s.final])
    return connection.execute(JOBS.where(j.c.owner == owner, unfinished, uses).order_by(j.c.seq).limit(1)).first()


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
    """A row of :data:`JOBS` as a record."""
    return read_row(row, JobRecord)
