"""Uploads in parts: each part a blob that is kept until the upload is completed, cancelled or expired."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from dataclasses import asdict
from io import BufferedReader
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Row

from ..core.errors import Code, Error, is_damage
from .blobs.blobs import BlobStore
from .database import Database, read_row
from .quotas import check_dataset
from .records import PartRecord, UploadRecord, UploadState
from .schema import upload_parts as p
from .schema import uploads as u

_PENDING = u.c.state == UploadState.PENDING.value


class UploadTable:
    """Uploads of all tenants. Thread-safe. Another tenant's upload is NOT_FOUND, and so is one that has expired.

    The announced size of a pending upload counts against its owner's quota of stored bytes, and its parts never take
    more than that.
    """

    def __init__(self, database: Database, blobs: BlobStore, now: Callable[[], float] = time.time) -> None:
        self._db, self._blobs, self._now = database, blobs, now

    def create(self, owner: str, filename: str, size_bytes: int, *, seconds: float, most: int) -> UploadRecord:
        """Begin an upload that lasts for ``seconds``; durable on return.

        Raises RESOURCE_EXHAUSTED when the owner has ``most`` pending ones, or over its quota.
        """
        now = self._now()
        new: dict[str, Any] = {
            "id": f"upload_{uuid.uuid4().hex}",
            "owner": owner,
            "filename": filename[:255],
            "size_bytes": size_bytes,
            "state": UploadState.PENDING.value,
            "created": now,
            "expires": now + seconds,
            "dataset_id": "",
        }
        with self._db.write("upload.create") as connection:
            _drop_expired(connection, now)
            pending = connection.scalar(sa.select(sa.func.count()).select_from(u).where(u.c.owner == owner, _PENDING))
            if int(pending or 0) >= most:
                raise Error(
                    Code.RESOURCE_EXHAUSTED,
                    f"{most} uploads are pending, the most at once; complete or cancel one of them",
                    reason="TOO_MANY_UPLOADS",
                )
            check_dataset(connection, owner, size_bytes)
            connection.execute(u.insert().values(**new))
        return UploadRecord(**{**new, "state": UploadState.PENDING})

    def get(self, upload_id: str, owner: str) -> UploadRecord:
        """An upload as it stands."""
        with self._db.read() as connection:
            return read_row(_need(connection, upload_id, owner, self._now()), UploadRecord)

    def parts(self, upload_id: str, owner: str) -> dict[str, PartRecord]:
        """The parts of an upload by id."""
        with self._db.read() as connection:
            _need(connection, upload_id, owner, self._now())
            found = connection.execute(sa.select(p).where(p.c.upload_id == upload_id)).all()
        return {row.id: read_row(row, PartRecord) for row in found}

    def add_part(self, upload_id: str, owner: str, source: Path, *, most: int) -> PartRecord:
        """Store a file as a part; durable on return. A part is named by its bytes: sent again, it is the same one.

        Raises FAILED_PRECONDITION unless the upload is pending, RESOURCE_EXHAUSTED beyond ``most`` parts or the bytes
        that it was announced with.
        """
        with self._blobs.publishing():
            blob = self._blobs.put_file(source)
            with self._db.write("upload.part") as connection:
                upload = pending(connection, upload_id, owner, self._now())
                mine = p.c.upload_id == upload_id
                id = f"part_{blob.digest[:32]}"
                if (found := connection.execute(sa.select(p).where(mine, p.c.id == id)).first()) is not None:
                    return read_row(found, PartRecord)
                count, size = connection.execute(
                    sa.select(sa.func.count(), sa.func.sum(p.c.size_bytes)).where(mine)
                ).one()
                if count >= most:
                    raise Error(
                        Code.RESOURCE_EXHAUSTED,
                        f"upload {upload_id} has {count} parts, the most that one may have; send larger parts",
                        reason="TOO_MANY_PARTS",
                    )
                if (total := int(size or 0) + blob.size_bytes) > upload.size_bytes:
                    raise Error(
                        Code.RESOURCE_EXHAUSTED,
                        f"the parts hold {total} bytes, but upload {upload_id} was announced with {upload.size_bytes}",
                        reason="UPLOAD_TOO_LARGE",
                    )
                new = PartRecord(upload_id, id, blob.digest, blob.size_bytes, self._now())
                connection.execute(p.insert().values(asdict(new)))
        return new

    def open_part(self, part: PartRecord) -> BufferedReader:
        """The bytes of a part, checked. Blocking; DATA_LOSS when they are gone or damaged."""
        try:
            return self._blobs.open_file(part.digest)
        except Error as error:
            if not is_damage(error):
                raise
            words = f"the file of {part.id} is damaged or gone; send the part again, which heals it"
            raise Error(Code.DATA_LOSS, words, reason=error.reason) from error

    def cancel(self, upload_id: str, owner: str) -> UploadRecord:
        """Drop an upload with its parts; a cancelled one stays cancelled. FAILED_PRECONDITION for a completed one."""
        with self._db.write("upload.cancel") as connection:
            row = _need(connection, upload_id, owner, self._now())
            if row.state != UploadState.CANCELLED.value:
                pending(connection, upload_id, owner, self._now())
                _end(connection, upload_id, UploadState.CANCELLED)
            return read_row(_need(connection, upload_id, owner, self._now()), UploadRecord)

    def drop_expired(self) -> int:
        """Forget the uploads whose time is over; gives their number."""
        with self._db.write("upload.expire") as connection:
            return _drop_expired(connection, self._now())

    def referenced_digests(self) -> frozenset[str]:
        """Blobs of all parts."""
        with self._db.read() as connection:
            return part_digests(connection)


def part_digests(connection: Connection) -> frozenset[str]:
    """Blobs of all parts."""
    return frozenset(connection.scalars(sa.select(p.c.digest)))


def pending(connection: Connection, upload_id: str, owner: str, now: float) -> UploadRecord:
    """An upload that may still be added to. FAILED_PRECONDITION for one that has ended."""
    found = read_row(_need(connection, upload_id, owner, now), UploadRecord)
    check_pending(found)
    return found


def check_pending(upload: UploadRecord) -> None:
    """Raise FAILED_PRECONDITION for an upload that has ended."""
    if upload.state is not UploadState.PENDING:
        raise Error(Code.FAILED_PRECONDITION, f"upload {upload.id} is {upload.state.value}; begin a new one")


def complete(connection: Connection, upload_id: str, owner: str, dataset_id: str, now: float) -> None:
    """Put a dataset in the place of the parts that it was made of."""
    pending(connection, upload_id, owner, now)
    _end(connection, upload_id, UploadState.COMPLETED, dataset_id)


def _end(connection: Connection, upload_id: str, state: UploadState, dataset_id: str = "") -> None:
    connection.execute(p.delete().where(p.c.upload_id == upload_id))
    connection.execute(u.update().where(u.c.id == upload_id).values(state=state.value, dataset_id=dataset_id))


def _drop_expired(connection: Connection, now: float) -> int:
    gone = u.c.expires <= now
    connection.execute(p.delete().where(p.c.upload_id.in_(sa.select(u.c.id).where(gone))))
    return connection.execute(u.delete().where(gone)).rowcount


def _need(connection: Connection, upload_id: str, owner: str, now: float) -> Row[Any]:
    mine = sa.and_(u.c.id == upload_id, u.c.owner == owner, u.c.expires > now)
    row = connection.execute(sa.select(u).where(mine)).first()
    if row is None:
        words = f"upload {upload_id[:80]!r} not found, or its time is over; begin a new one"
        raise Error(Code.NOT_FOUND, words, reason="UPLOAD_NOT_FOUND")
    return row
