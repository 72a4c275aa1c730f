"""Datasets: the bytes as a blob, and a row that says whose they are."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Row

from ..core.callers.principal import Viewer, names_of, tenant_of
from ..core.errors import MISSING, Code, Error, is_damage
from ..host.files import open_regular, storage_errors
from .blobs.blobs import BlobStore
from .damage import DamageCount, Kind
from .database import Database, read_row
from .jobs.rows import using_dataset
from .paging import check_page_size, make_token, read_token, unknown_token
from .quotas import check_dataset
from .records import DatasetRecord
from .schema import datasets as d
from .uploads import complete


class DatasetTable:
    """Datasets of all tenants. Thread-safe. Another tenant's dataset is NOT_FOUND."""

    def __init__(
        self,
        database: Database,
        blobs: BlobStore,
        now: Callable[[], float] = time.time,
        damage: DamageCount | None = None,
    ) -> None:
        self._db, self._blobs, self._now = database, blobs, now
        self._damage = damage or DamageCount()

    def put(
        self,
        source: Path,
        owner: str,
        *,
        filename: str = "",
        format: str = "jsonl",
        rows: int | None = None,
        upload_id: str = "",
    ) -> DatasetRecord:
        """Store a file; durable on return. Bytes that the owner stored before give the record they have.

        ``upload_id`` is the upload in parts that it comes from, which is completed in the same transaction. Raises
        RESOURCE_EXHAUSTED over the owner's quota.
        """
        with self._blobs.publishing():
            blob = self._blobs.put_file(source)
            with self._db.write("dataset") as connection:
                identity = f"ds-{blob.digest[:16]}"
                if upload_id:
                    complete(connection, upload_id, owner, identity, self._now())
                found = _row(connection, identity, owner)
                if found is not None:
                    return read_row(found, DatasetRecord)
                check_dataset(connection, owner, blob.size_bytes)
                new: dict[str, Any] = {
                    "id": identity,
                    "owner": owner,
                    "digest": blob.digest,
                    "filename": filename[:255],
                    "format": format,
                    "size_bytes": blob.size_bytes,
                    "created": self._now(),
                    "rows": rows,
                }
                connection.execute(d.insert().values(**new))
        return DatasetRecord(**new)

    def get(self, dataset_id: str, tenant: str) -> DatasetRecord:
        """The record of a dataset."""
        with self._db.read() as connection:
            found = _row(connection, dataset_id, tenant)
        if found is None:
            raise _not_found(dataset_id)
        return read_row(found, DatasetRecord)

    def list(
        self, tenant: str, *, page_size: int = 100, page_token: str = "", after: str = "", oldest_first: bool = False
    ) -> tuple[tuple[DatasetRecord, ...], str]:
        """A page of a tenant's datasets, newest first, and the token of the next page (empty: none).

        Without a token the page may begin behind the dataset ``after``. Raises NOT_FOUND when there is no such one.
        """
        check_page_size(page_size)
        order = d.c.seq.asc() if oldest_first else d.c.seq.desc()
        query = sa.select(d).where(d.c.owner == tenant).order_by(order).limit(page_size + 1)
        last = read_token(page_token)
        with self._db.read() as connection:
            if last is not None or after:
                if (row := _row(connection, last or after, tenant)) is None:
                    raise unknown_token() if last else _not_found(after)
                query = query.where(d.c.seq > row.seq if oldest_first else d.c.seq < row.seq)
            found = connection.execute(query).all()
        page = found[:page_size]
        records = tuple(read_row(row, DatasetRecord) for row in page)
        return records, make_token(page[-1].id) if len(found) > page_size else ""

    def delete(self, dataset_id: str, viewer: Viewer) -> DatasetRecord:
        """Forget a dataset; gives what it was. Its file stays until it is collected.

        Raises FAILED_PRECONDITION while a job that may still run has it: its rows are read again where the job's own
        are damaged. Jobs that ended keep their record, and a failed one keeps its own rows.
        """
        tenant, names = tenant_of(viewer), names_of(viewer)
        with self._db.write("dataset.delete") as connection:
            found = _row(connection, dataset_id, tenant)
            if found is None:
                raise _not_found(dataset_id)
            if (job := using_dataset(connection, dataset_id, tenant)) is not None:
                seen = names is None or job.name in names
                who = f"job {job.id}, which is {job.state}" if seen else "a job that this key does not see"
                raise Error(
                    Code.FAILED_PRECONDITION,
                    f"dataset {dataset_id} is used by {who}; wait until it has ended, or cancel it",
                    reason="DATASET_IN_USE",
                )
            connection.execute(d.delete().where(d.c.seq == found.seq))
        return read_row(found, DatasetRecord)

    def open(self, dataset_id: str, tenant: str) -> BufferedReader:
        """The file of a dataset to look at, unchecked: who takes rows from it checks all of its bytes."""
        digest = self.get(dataset_id, tenant).digest
        with self._telling(digest), storage_errors("cannot read the dataset"):
            return os.fdopen(open_regular(self._blobs.local_path(digest)), "rb")

    def open_checked(self, dataset_id: str, tenant: str) -> BufferedReader:
        """The file of a dataset to hand out: all of its bytes are what was stored. Blocking; errors as ``read``."""
        digest = self.get(dataset_id, tenant).digest
        with self._telling(digest):
            return self._blobs.open_file(digest)

    def read(self, digest: str) -> bytes:
        """The bytes of a stored dataset, checked against its digest; blocking.

        Raises DATA_LOSS when they are gone or not what was stored.
        """
        with self._telling(digest):
            return self._blobs.read_file(digest)

    @contextmanager
    def _telling(self, digest: str) -> Iterator[None]:
        """Count damage, and say what the owner of the dataset can do about it."""
        try:
            yield
        except Error as error:
            if not is_damage(error):
                raise
            self._damage.found(Kind.DATASET)
            what = "missing from the store" if error.reason == MISSING else "damaged: it does not hold what was stored"
            raise Error(
                Code.DATA_LOSS,
                f"the file of dataset ds-{digest[:16]} is {what}; upload the same file again, which heals it",
                reason=error.reason,
            ) from error

    def referenced_digests(self) -> frozenset[str]:
        """Blobs of all datasets."""
        with self._db.read() as connection:
            return frozenset(connection.scalars(sa.select(d.c.digest)))


def _not_found(dataset_id: str) -> Error:
    return Error(Code.NOT_FOUND, f"dataset {dataset_id[:80]!r} not found; upload it first", reason="DATASET_NOT_FOUND")


def _row(connection: Connection, dataset_id: str, owner: str) -> Row[Any] | None:
    return connection.execute(sa.select(d).where(d.c.id == dataset_id, d.c.owner == owner)).first()
