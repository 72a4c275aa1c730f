"""The store in one piece: state directory, database, blobs, and the tables over them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

from ..core.errors import Code, Error
from ..core.jobs import JobRequest, JobState
from ..core.notes import Note
from ..host.failpoints import reach
from .adapters.registry import AdapterRegistry
from .blobs.blobs import BlobStore
from .blobs.local import LocalBlobs
from .blobs.places import CACHE_BYTES, open_blobs
from .damage import DamageCount
from .database import Database, sqlite_url
from .datasets import DatasetTable
from .jobs.events import MOST_EVENTS
from .jobs.table import REPLACED, JobTable, new_job_id
from .keys import KeyTable
from .quota_use import QuotaUse
from .quotas import QuotaTable
from .records import AdapterMeta, JobRecord, VersionRecord
from .state_dir import StateDir
from .uploads import UploadTable
from .usage import UsageTable

CACHE = "cache"
"""The folder of a state directory with copies of blobs that are stored elsewhere."""
KEEP_FAILED_SECONDS = 7 * 86_400.0
"""How long the last checkpoint of a failed job is kept."""


class Store:
    """Everything that must survive. Thread-safe; its calls block, so loops use ``asyncio.to_thread``."""

    def __init__(
        self,
        state: StateDir,
        database: Database,
        blobs: BlobStore,
        now: Callable[[], float],
        job_events: int = MOST_EVENTS,
        shared: bool = False,
    ) -> None:
        self.state = state
        self.database = database
        self.blobs = blobs
        self.damage = DamageCount()
        self.adapters = AdapterRegistry(database, self.blobs, now, self.damage)
        self.datasets = DatasetTable(database, self.blobs, now, self.damage)
        self.uploads = UploadTable(database, self.blobs, now)
        self.jobs = JobTable(database, now, job_events)
        self.keys = KeyTable(database, now)
        self.quotas = QuotaTable(database, now)
        self.quota_use = QuotaUse(database) if shared else None
        """None: no other server can be at the database."""
        self.usage = UsageTable(database, now)

    @classmethod
    def open(
        cls,
        path: Path | str,
        database_url: str | None = None,
        blobs_url: str | None = None,
        *,
        cache_bytes: int = CACHE_BYTES,
        engine_here: bool = True,
        job_events: int = MOST_EVENTS,
        now: Callable[[], float] = time.time,
    ) -> Self:
        """Open or make the state directory ``path``, its database and its blobs (in it, unless a URL is given).

        ``cache_bytes`` bounds the local copies of blobs that are elsewhere, ``engine_here``: the engine reads these,
        so what it alone needs is stored nowhere else; ``job_events`` are kept of a job. Raises
        FAILED_PRECONDITION (directory in use or not writable, newer or foreign database, database gone, another
        store's blobs), DATA_LOSS (database damaged) and INVALID_ARGUMENT (a URL); nothing that is there is ever
        overwritten.
        """
        state = StateDir.open(path)
        try:
            if database_url is None:
                _refuse_lost_database(state)
            database = Database.open(database_url or sqlite_url(state.db))
            try:
                blobs = blobs_of(state, database.identity, blobs_url, cache_bytes, engine_here)
                return cls(state, database, blobs, now, job_events, shared=database_url is not None)
            except BaseException:
                database.close()
                raise
        except BaseException:
            state.close()
            raise

    def create_job(
        self, request: JobRequest, donors: Mapping[str, str], notes: Sequence[Note], folder: Path
    ) -> JobRecord:
        """Queue a job whose own ``folder`` becomes, one of ``StateDir.new_tmp``; both durable on return.

        The folder first: a process that dies in between leaves one without a job, which the next start removes.
        The same idempotency key gives the job that it made before.
        """
        job_id = new_job_id()
        self.state.adopt_job_folder(job_id, folder)
        reach("job.folder_kept")
        try:
            record = self.jobs.create(request, donors=donors, notes=notes, job_id=job_id)
        except BaseException:
            self.state.drop_job_folder(job_id)
            raise
        if record.id != job_id:
            self.state.drop_job_folder(job_id)
        return record

    def publish_job_result(
        self,
        job_id: str,
        folder: Path,
        meta: AdapterMeta,
        *,
        gate_result: str = "",
        fence: int | None = None,
    ) -> tuple[VersionRecord, JobRecord]:
        """Publish what a job in PUBLISHING made, and the job's success, in one transaction; drop its checkpoints.

        ``gate_result`` says why the version is not promoted; empty: it is.
        """
        job = self.jobs.get(job_id)
        self.jobs.flush()
        done: list[JobRecord] = []
        version = self.adapters.publish(
            job.request.name,
            job.request.tenant,
            folder,
            meta,
            promote=not gate_result,
            also=lambda connection, record: done.append(
                self.jobs.move_within(
                    connection,
                    job_id,
                    JobState.SUCCEEDED,
                    message=_outcome(record, gate_result),
                    metrics={} if record.replaced is None else {REPLACED: float(record.replaced)},
                    adapter=record.ref,
                    gate_result=gate_result,
                    fence=fence,
                )
            ),
        )
        with suppress(Error):  # published is published; the next start sweeps the folder
            self.state.drop_job_folder(job_id)
        return version, done[0]

    def collect_orphans(self) -> tuple[str, ...]:
        """Remove blobs that no row names and nobody uses; returns their digests."""
        return self.blobs.collect_orphans(self._referenced)

    def orphans(self) -> frozenset[str]:
        """Blobs that no row names now: in use, on their way to a row, or to be collected."""
        found = frozenset(self.blobs.digests())
        return found - self._referenced()

    def _referenced(self) -> frozenset[str]:
        # Datasets after uploads, and jobs last: what came to be meanwhile names what the rows before still named.
        named = self.adapters.referenced_digests() | self.uploads.referenced_digests()
        named |= self.datasets.referenced_digests()
        return named | self.jobs.referenced_digests()

    def sweep_job_folders(self) -> None:
        """At start: drop the checkpoints that no job can go on from, and those of jobs that failed long ago."""
        for folder in list(self.state.jobs.iterdir()):
            try:
                job = self.jobs.get(folder.name)
            except Error:
                job = None
            failed = job is not None and job.state is JobState.FAILED
            if job is None or (job.state.final and not (failed and time.time() - job.updated < KEEP_FAILED_SECONDS)):
                self.state.drop_job_folder(folder.name)

    def close(self) -> None:
        """Write what waits, close the database, release the directory. Harmless twice."""
        try:
            self.jobs.flush()
            self.adapters.flush()
        finally:
            self.database.close()
            self.state.close()


def _outcome(record: VersionRecord, gate_result: str) -> str:
    """What publishing did to the name."""
    before = "" if record.replaced in (None, record.version) else f"{record.name}@{record.replaced}"
    if not gate_result:
        return f"published {record.ref}" + (f"; {record.name} now means it (was {before})" if before else "")
    still = f"{record.name} still means {before}" if before else f"{record.name} means no version"
    return f"{record.ref} is kept as a candidate: {gate_result}; {still}"


def blobs_of(
    state: StateDir, identity: str, url: str | None, cache_bytes: int = CACHE_BYTES, engine_here: bool = True
) -> BlobStore:
    """Where a server with this state directory has its blobs; errors as :func:`blob_places.open_blobs`."""
    if url is None:
        return LocalBlobs(state.blobs, state.tmp)
    cache = state.path / CACHE
    return open_blobs(url, identity, state.id, state.tmp, cache=cache, cache_bytes=cache_bytes, engine_here=engine_here)


def _refuse_lost_database(state: StateDir) -> None:
    """An empty database beside blobs means that the database was lost: a fresh one would orphan them all."""
    if state.db.exists() and state.db.stat().st_size > 0:
        return
    if any(state.blobs.glob("*/*/*")):
        raise Error(
            Code.FAILED_PRECONDITION,
            f"the database {state.db} is gone, but its files are still in {state.blobs}; restore a backup "
            "(loramux restore), or move the state directory away to begin anew",
            reason="DATABASE_MISSING",
        )
