"""Datasets that come in parts: kept until all of them are there, then one dataset as if it had come at once."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack

from ...core.bounds import NOT_UNICODE, utf8_size
from ...core.call import about
from ...core.callers.principal import Principal
from ...core.errors import Code, Error, FieldViolation, invalid, invalid_field
from ...core.observing.outage import Outage
from ...store.records import DatasetRecord, PartRecord, UploadRecord, UploadState
from ...store.uploads import check_pending
from ...telemetry.logs import get_logger
from ..common.checks import shown
from ..common.context import Context
from ..common.shielding import temporary_folder, to_the_end
from ..common.uploads import receive_file
from .service import TrainingService

log = get_logger(__name__)

PIECE = 256 << 10
"""Bytes of a part that are read at once."""
EXPIRE_SECONDS = 30.0
"""How often uploads are looked for whose time is over."""


class UploadService:
    """Takes datasets in parts. Another tenant's upload is NOT_FOUND, and so is one that has expired.

    The app runs ``run`` as a task, which forgets those that have expired.
    """

    def __init__(self, context: Context, training: TrainingService) -> None:
        self._store, self._limits = context.store, context.limits
        self._unused = context.unused
        self._training = training
        self._outage = Outage()

    async def create(self, principal: Principal, *, filename: str, size_bytes: int) -> UploadRecord:
        """Begin an upload of ``size_bytes``, which count as stored from now on.

        Raises INVALID_ARGUMENT, RESOURCE_EXHAUSTED (larger than a dataset may be, over the quota, too many uploads).
        """
        limits = self._limits
        if utf8_size(filename) is None:
            raise invalid([FieldViolation("filename", NOT_UNICODE)])
        if size_bytes < 1:
            raise invalid_field("bytes", f"is {size_bytes}; it must be at least 1")
        if size_bytes > limits.max_dataset_bytes:
            words = f"bytes: is {size_bytes}; a dataset has at most {limits.max_dataset_bytes}"
            raise Error(Code.RESOURCE_EXHAUSTED, words, reason="UPLOAD_TOO_LARGE")
        upload = await asyncio.to_thread(
            self._store.uploads.create,
            principal.tenant,
            filename,
            size_bytes,
            seconds=limits.max_upload_seconds,
            most=limits.max_pending_uploads,
        )
        about(upload.id)
        return upload

    async def add_part(self, upload_id: str, chunks: AsyncIterator[bytes], principal: Principal) -> PartRecord:
        """Store the next bytes of an upload; durable on return. Parts may come in any order, and at once.

        Raises FAILED_PRECONDITION for an upload that has ended, RESOURCE_EXHAUSTED for a part that is too large, too
        many, or more bytes than the upload was announced with.
        """
        about(upload_id)
        upload = await asyncio.to_thread(self._store.uploads.get, upload_id, principal.tenant)
        check_pending(upload)
        most = min(self._limits.max_part_bytes, upload.size_bytes)
        async with temporary_folder(self._store, "part") as folder:
            path = folder / "data"
            await receive_file(chunks, path, most)
            add = self._store.uploads.add_part
            return await to_the_end(
                asyncio.to_thread(add, upload_id, principal.tenant, path, most=self._limits.max_upload_parts)
            )

    async def complete(
        self, upload_id: str, part_ids: Sequence[str], principal: Principal, *, md5: str = ""
    ) -> tuple[UploadRecord, DatasetRecord]:
        """Make a dataset of parts in this order; those that are not named are dropped. Twice gives the same.

        Raises INVALID_ARGUMENT for parts that are not of this upload, or hold other bytes than announced or ``md5``
        says; then the upload stays pending.
        """
        about(upload_id)
        upload = await asyncio.to_thread(self._store.uploads.get, upload_id, principal.tenant)
        if upload.state is not UploadState.COMPLETED:
            try:
                await self._put_together(upload, part_ids, principal, md5)
            except Error:
                upload = await asyncio.to_thread(self._store.uploads.get, upload_id, principal.tenant)
                if upload.state is not UploadState.COMPLETED:  # by another call meanwhile
                    raise
            else:
                upload = await asyncio.to_thread(self._store.uploads.get, upload_id, principal.tenant)
                self._unused.set()
        about(upload_id, dataset=upload.dataset_id)
        return upload, await self._training.get_dataset(upload.dataset_id, principal)

    async def cancel(self, upload_id: str, principal: Principal) -> UploadRecord:
        """Drop an upload with its parts. FAILED_PRECONDITION for one that is completed."""
        about(upload_id)
        upload = await asyncio.to_thread(self._store.uploads.cancel, upload_id, principal.tenant)
        self._unused.set()
        return upload

    async def run(self) -> None:
        """Forget what has expired, at once and now and then, until cancelled."""
        while True:
            try:
                gone = await asyncio.to_thread(self._store.uploads.drop_expired)
            except Error as error:
                if self._outage.failed():
                    log.warning("uploads do not expire now", error=error.message, times=self._outage.failures)
            else:
                self._outage.over()
                if gone:
                    log.info("uploads expired", uploads=gone)
                    self._unused.set()
            await asyncio.sleep(EXPIRE_SECONDS)

    async def _put_together(
        self, upload: UploadRecord, part_ids: Sequence[str], principal: Principal, md5: str
    ) -> None:
        check_pending(upload)
        if len(part_ids) > (most := self._limits.max_upload_parts):
            raise invalid_field("part_ids", f"has {len(part_ids)} ids; at most {most} are allowed")
        known = await asyncio.to_thread(self._store.uploads.parts, upload.id, principal.tenant)
        if unknown := [(i, id) for i, id in enumerate(part_ids) if id not in known]:
            raise invalid(
                FieldViolation(f"part_ids[{i}]", f"{shown(id)} is no part of this upload") for i, id in unknown[:20]
            )
        parts = [known[id] for id in part_ids]
        if (total := sum(part.size_bytes for part in parts)) != upload.size_bytes:
            words = f"name parts of {total} bytes, but the upload was announced with {upload.size_bytes}"
            raise invalid_field("part_ids", words)
        async with AsyncExitStack() as stack:
            held = self._store.blobs.holding([*{part.digest for part in parts}])
            await to_the_end(asyncio.to_thread(stack.enter_context, held))
            chunks = self._bytes(parts, md5)
            await self._training.upload_dataset(chunks, principal, name=upload.filename, upload_id=upload.id)

    async def _bytes(self, parts: Sequence[PartRecord], md5: str) -> AsyncIterator[bytes]:
        """The bytes of parts one after the other, and an error after the last unless they are what ``md5`` says."""
        digest = hashlib.md5(usedforsecurity=False)
        for part in parts:
            with await asyncio.to_thread(self._store.uploads.open_part, part) as file:
                while piece := await asyncio.to_thread(file.read, PIECE):
                    digest.update(piece)
                    yield piece
        if md5 and md5.lower() != digest.hexdigest():
            raise invalid_field("md5", f"is {shown(md5)}, but the parts in this order have {digest.hexdigest()}")
