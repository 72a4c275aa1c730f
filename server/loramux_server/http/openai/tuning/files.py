"""``/v1/files``: a file is a dataset."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Literal

from ....core import call as calls
from ....core.errors import invalid_field
from ....services.availability import Availability
from ....store.records import DatasetRecord
from ...bodies.fields import Strict, read
from ...bodies.multipart import OVERHEAD, Form, Part
from ...description.describe import describe
from ...exchanges.exchange import Exchange
from .ids import dataset_id, file_id
from .objects import PURPOSE, file_object
from .queries import FilesQuery, given, listed_with_ids
from .shapes import DeletedFile, File, FilePage

PAGE = 1000


class FileForm(Strict):
    """The parts of ``POST /v1/files``."""

    purpose: Literal["fine-tune"]
    file: bytes


class Files:
    """Takes files for training, and gives them back."""

    def __init__(self, availability: Availability) -> None:
        self._availability = availability

    @describe(form=FileForm, answer=File)
    async def create(self, exchange: Exchange) -> None:
        """Store a file as it comes; nothing is stored unless the whole form is as it must be."""
        service, limits = self._availability.open().training, self._availability.open_context().limits
        async with aclosing(exchange.pieces(limits.max_dataset_bytes + OVERHEAD)) as pieces:
            upload = _Upload(Form(pieces, exchange.request_headers.get("content-type", "")))
            filename = await upload.filename()
            stored = await service.upload_dataset(
                upload.content(), calls.principal(), name=filename, announced=_announced(exchange)
            )
        await exchange.send_json(file_object(stored))

    @describe(query=FilesQuery, answer=FilePage)
    async def list(self, exchange: Exchange) -> None:
        """A page of files, newest first unless asked otherwise."""
        query = read(FilesQuery, given(exchange.request.query_params))
        service, principal = self._availability.open().training, calls.principal()
        found: list[DatasetRecord] = []
        token, most = "", query.limit if query.purpose in ("", PURPOSE) else 0
        while len(found) <= most and most:
            page = await service.list_datasets(
                principal,
                page_size=min(PAGE, most + 1 - len(found)),
                page_token=token,
                after=dataset_id(query.after),
                oldest_first=query.order == "asc",
            )
            found += page.items
            token = page.next_page_token
            if not token:
                break
        await exchange.send_json(listed_with_ids([*map(file_object, found[:most])], len(found) > most))

    @describe(answer=File)
    async def retrieve(self, exchange: Exchange) -> None:
        """One."""
        stored = await self._availability.open().training.get_dataset(_asked_for(exchange), calls.principal())
        await exchange.send_json(file_object(stored))

    @describe(media="application/octet-stream")
    async def content(self, exchange: Exchange) -> None:
        """The bytes of one."""
        service, principal, id = self._availability.open().training, calls.principal(), _asked_for(exchange)
        stored = await service.get_dataset(id, principal)
        with await service.open_dataset(id, principal) as file:
            async with exchange.ended_by_disconnect():
                await exchange.send_file(file, stored.size_bytes, "application/octet-stream")

    @describe(answer=DeletedFile)
    async def delete(self, exchange: Exchange) -> None:
        """Forget one."""
        gone = await self._availability.open().training.delete_dataset(_asked_for(exchange), calls.principal())
        await exchange.send_json({"id": file_id(gone.id), "object": "file", "deleted": True})


def _asked_for(exchange: Exchange) -> str:
    return dataset_id(exchange.path_params["file_id"])


def _announced(exchange: Exchange) -> tuple[int, int]:
    """The least and the most bytes that the file of a form has, by the length of the body; 0 and 0: unknown."""
    return max(exchange.announced - OVERHEAD, 0), exchange.announced


class _Upload:
    """The form of an upload: ``file`` and, before or behind it, ``purpose``."""

    def __init__(self, form: Form) -> None:
        self._form = form
        self._purpose: str | None = None

    async def filename(self) -> str:
        """Read as far as the file begins; what it is called."""
        while (part := await self._form.next_part()) is not None:
            if part.name == "file":
                return part.filename or ""
            await self._field(part)
        raise invalid_field("file", "is missing")

    async def content(self) -> AsyncIterator[bytes]:
        """The bytes of the file, and an error after the last one unless the rest of the form is as it must be."""
        async for piece in self._form.body():
            yield piece
        while (part := await self._form.next_part()) is not None:
            await self._field(part)
        if self._purpose is None:
            raise invalid_field("purpose", f"is missing; give {PURPOSE!r}")

    async def _field(self, part: Part) -> None:
        if part.name == "file" or (part.name == "purpose" and self._purpose is not None):
            raise invalid_field(part.name, "is given twice")
        if part.name.startswith("expires_after"):
            raise invalid_field("expires_after", "must be left out: files do not expire")
        if part.name != "purpose":
            raise invalid_field(part.name[:80], "is no field of this request; leave it out")
        self._purpose = await self._form.value(part.name)
        if self._purpose != PURPOSE:
            raise invalid_field("purpose", f"is {self._purpose[:40]!r}; it must be {PURPOSE!r}")
