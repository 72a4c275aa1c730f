"""Checks every invariant of a store, and mends what can be mended when told to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial

import sqlalchemy as sa
from sqlalchemy import Connection

from ...core.errors import Error
from ...core.jobs import JobState
from ...core.types import COMPUTED_WITH
from ..adapters import rows as adapter_rows
from ..adapters.refs import check_alias, check_name
from ..blobs.blobs import BlobStore
from ..blobs.files import Damage
from ..database import Database
from ..jobs import rows as job_rows
from ..records import DAMAGED, VersionState
from ..schema import adapter_versions as v
from ..schema import adapters as a
from ..schema import aliases as al
from ..schema import datasets as d
from ..schema import job_events as e
from ..schema import jobs as j
from ..schema import upload_parts as p
from ..uploads import part_digests


class Check(StrEnum):
    """What can be wrong."""

    DATABASE = "database"
    NAME = "name"
    VERSION = "version"
    FILES = "files"
    SIZE = "size"
    ALIAS = "alias"
    DATASET = "dataset"
    UPLOAD = "upload"
    JOB = "job"
    EVENTS = "events"
    ORPHAN = "orphan"
    STRAY = "stray"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as it must be. ``remedy`` says what a repair does; empty: it can do nothing."""

    check: Check
    subject: str
    detail: str
    remedy: str = ""
    mend: Callable[[Connection], object] | None = field(default=None, compare=False, repr=False)
    """What repairs it in the database, if that is where it is repaired."""


def examine(database: Database, blobs: BlobStore, *, orphans: bool = True) -> list[Finding]:
    """Everything that is wrong with a store; reads every file whole and changes nothing.

    ``orphans`` off leaves out files that no row names: while a server runs, some are only on their way to one.
    """
    with database.read() as connection:
        found = [
            *_check_database(connection),
            *_check_names(connection),
            *_check_versions(connection, blobs),
            *_check_aliases(connection),
            *_check_datasets(connection, blobs),
            *_check_uploads(connection, blobs),
            *_check_jobs(connection),
            *_check_donors(connection, blobs),
            *_check_events(connection),
            *(Finding(Check.STRAY, path, "is no part of the store", "remove it") for path in blobs.strays()),
        ]
        if orphans:
            found += _check_orphans(connection, blobs)
    return found


def repair(database: Database, blobs: BlobStore, found: list[Finding]) -> None:
    """Do what the findings' remedies say, those of the database in one transaction."""
    with database.write("repair") as connection:
        for finding in found:
            if finding.mend is not None:
                finding.mend(connection)
    for finding in found:
        if finding.check is Check.STRAY:
            blobs.remove_stray(finding.subject)
    if any(finding.check is Check.ORPHAN for finding in found):
        blobs.collect_orphans(lambda: referenced_digests(database))


def referenced_digests(database: Database) -> frozenset[str]:
    """Every blob that a row still needs."""
    with database.read() as connection:
        return _referenced(connection)


def _referenced(connection: Connection) -> frozenset[str]:
    datasets = frozenset(connection.scalars(sa.select(d.c.digest)))
    named = adapter_rows.live_digests(connection) | datasets | part_digests(connection)
    return named | job_rows.donor_digests(connection)


def given_up_digests(database: Database) -> frozenset[str]:
    """Blobs that only versions need which are quarantined because these are damaged."""
    with database.read() as connection:
        rows = connection.execute(sa.select(v.c.digest, v.c.state, v.c.reason)).all()
        live = [row for row in rows if row.state != VersionState.DELETED]
        damaged = {row.digest for row in live if row.reason.startswith(DAMAGED)}
        needed = {row.digest for row in live if not row.reason.startswith(DAMAGED)}
        datasets = set(connection.scalars(sa.select(d.c.digest)))
        return frozenset(damaged - needed - datasets - part_digests(connection) - job_rows.donor_digests(connection))


def _check_database(connection: Connection) -> Iterator[Finding]:
    if connection.dialect.name != "sqlite":
        return
    for (text,) in connection.exec_driver_sql("PRAGMA integrity_check(20)"):
        if text != "ok":
            yield Finding(Check.DATABASE, "integrity", text)
    for row in connection.exec_driver_sql("PRAGMA foreign_key_check"):
        yield Finding(Check.DATABASE, "foreign key", f"row {row[1]} of {row[0]} names no row of {row[2]}")


def _check_names(connection: Connection) -> Iterator[Finding]:
    for name in connection.scalars(sa.select(a.c.name).order_by(a.c.name)):
        try:
            check_name(name)
        except Error as error:
            yield Finding(Check.NAME, name[:80], error.message)


def _check_versions(connection: Connection, blobs: BlobStore) -> Iterator[Finding]:
    found: dict[str, list[Damage]] = {}  # digest -> what is wrong with it
    rows = sa.select(v, a.c.name).join(a, a.c.id == v.c.adapter_id).order_by(v.c.id)
    for row in connection.execute(rows).all():
        ref = f"{row.name}@{row.version}"
        if row.state not in set(VersionState) or row.version < 1:
            yield Finding(Check.VERSION, ref, f"has state {row.state!r}")
            continue
        if row.state == VersionState.DELETED:
            if row.pinned:
                yield Finding(
                    Check.VERSION,
                    ref,
                    "is deleted and pinned",
                    "unpin it",
                    _run(v.update().where(v.c.id == row.id).values(pinned=False)),
                )
            continue
        damaged = row.state == VersionState.QUARANTINED and row.reason.startswith(DAMAGED)
        if row.state != VersionState.READY and not damaged:
            continue
        if row.digest not in found:
            found[row.digest] = _damage(blobs, row.digest)
        harm = [damage for damage in found[row.digest] if damage.name in ("", *COMPUTED_WITH)]
        if damaged and not harm:
            words = "is quarantined as damaged, and its files are whole"
            mend = partial(adapter_rows.heal, digest=row.digest)
            yield Finding(Check.FILES, ref, words, "make it usable again", mend)
        elif harm and not damaged:
            yield Finding(
                Check.FILES,
                ref,
                words := "; ".join(map(str, harm)),
                "quarantine the version; publishing the same content again brings it back",
                partial(adapter_rows.quarantine, digest=row.digest, reason=f"{DAMAGED}{words}"),
            )
        elif not harm and (size := blobs.size(row.digest)) != row.size_bytes:
            yield Finding(
                Check.SIZE,
                ref,
                f"takes {size} bytes, its row says {row.size_bytes}",
                "correct the row",
                _run(v.update().where(v.c.id == row.id).values(size_bytes=size)),
            )
        for damage in found[row.digest]:
            if damage not in harm and not damage.extra:  # these are strays
                words = f"{damage}; nothing is computed with it, and publishing the same folder again brings it back"
                yield Finding(Check.FILES, ref, words)


def _damage(blobs: BlobStore, digest: str) -> list[Damage]:
    try:
        return blobs.damage(digest)
    except Error as error:
        return [Damage("", error.message)]


def _trouble(blobs: BlobStore, digest: str) -> str:
    return "; ".join(str(damage) for damage in _damage(blobs, digest))


def _run(statement: sa.UpdateBase) -> Callable[[Connection], object]:
    return lambda connection: connection.execute(statement)


def _check_aliases(connection: Connection) -> Iterator[Finding]:
    query = (
        sa.select(al, a.c.name, v.c.state)
        .join(a, a.c.id == al.c.adapter_id)
        .outerjoin(v, sa.and_(v.c.adapter_id == al.c.adapter_id, v.c.version == al.c.version))
    )
    for row in connection.execute(query).all():
        subject = f"{row.name}@{row.alias}"
        try:
            check_alias(row.alias)
        except Error as error:
            yield Finding(Check.ALIAS, subject[:160], error.message)
        if row.state is None or row.state == VersionState.DELETED:
            yield Finding(
                Check.ALIAS,
                subject,
                f"means version {row.version}, which is {row.state or 'nowhere'}",
                "remove the alias",
                _run(al.delete().where(al.c.adapter_id == row.adapter_id, al.c.alias == row.alias)),
            )


def _check_datasets(connection: Connection, blobs: BlobStore) -> Iterator[Finding]:
    for row in connection.execute(sa.select(d).order_by(d.c.seq)).all():
        if trouble := _trouble(blobs, row.digest):
            yield Finding(
                Check.DATASET,
                row.id,
                trouble,
                "forget the dataset; upload it again",
                _run(d.delete().where(d.c.seq == row.seq)),
            )


def _check_uploads(connection: Connection, blobs: BlobStore) -> Iterator[Finding]:
    for row in connection.execute(sa.select(p).order_by(p.c.upload_id, p.c.created)).all():
        if trouble := _trouble(blobs, row.digest):
            mine = sa.and_(p.c.upload_id == row.upload_id, p.c.id == row.id)
            words = f"has the part {row.id}, and {trouble}"
            yield Finding(
                Check.UPLOAD, row.upload_id, words, "forget the part; send it again", _run(p.delete().where(mine))
            )


def _check_jobs(connection: Connection) -> Iterator[Finding]:
    published = {
        f"{name}@{number}"
        for name, number in connection.execute(sa.select(a.c.name, v.c.version).join(a, a.c.id == v.c.adapter_id)).all()
    }
    for row in connection.execute(sa.select(j).order_by(j.c.seq)).all():
        if row.state not in set(JobState):
            yield Finding(Check.JOB, row.id, f"has state {row.state!r}")
            continue
        if JobState(row.state).final != (row.finished is not None):
            yield Finding(Check.JOB, row.id, f"is {row.state}, and its time of ending is {row.finished}")
        if row.state == JobState.SUCCEEDED and row.adapter not in published:
            yield Finding(Check.JOB, row.id, f"succeeded with {row.adapter!r}, which was never published")
        if row.state == JobState.FAILED and not row.error:
            yield Finding(Check.JOB, row.id, "failed without a reason")


def _check_donors(connection: Connection, blobs: BlobStore) -> Iterator[Finding]:
    live = adapter_rows.live_digests(connection)  # told of with their version
    for job_id, donors in job_rows.unfinished(connection):
        for ref, digest in donors.items():
            if digest not in live and (trouble := _trouble(blobs, digest)):
                yield Finding(Check.JOB, job_id, f"needs {ref}, and {trouble}")


def _check_events(connection: Connection) -> Iterator[Finding]:
    counts = (
        sa.select(e.c.job_seq, sa.func.count().label("n"), sa.func.min(e.c.sequence), sa.func.max(e.c.sequence))
        .group_by(e.c.job_seq)
        .order_by(e.c.job_seq)
    )
    ids = {row.seq: row for row in connection.execute(sa.select(j.c.seq, j.c.id, j.c.state)).all()}
    for seq, count, first, last in connection.execute(counts).all():
        if (first, last) != (1, count) and seq in ids:
            yield Finding(Check.EVENTS, ids[seq].id, f"has {count} events, numbered {first} to {last}")
    for seq, state in _last_states(connection).items():
        if seq in ids and ids[seq].state != state:
            yield Finding(Check.EVENTS, ids[seq].id, f"is {ids[seq].state}, and its last event of a state says {state}")


def _last_states(connection: Connection) -> dict[int, str]:
    rows = sa.select(e.c.job_seq, e.c.body).where(e.c.type == "state").order_by(e.c.job_seq, e.c.sequence)
    return {row.job_seq: str(row.body.get("state")) for row in connection.execute(rows).all()}


def _check_orphans(connection: Connection, blobs: BlobStore) -> Iterator[Finding]:
    referenced = _referenced(connection)
    for digest in sorted(set(blobs.digests()) - referenced):
        yield Finding(Check.ORPHAN, digest, "is named by no row", "remove the files")
