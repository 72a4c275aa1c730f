"""``/v1/uploads``: a file that comes in parts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing

from ....core import call as calls
from ....core.errors import invalid_field
from ....services.availability import Availability
from ....services.jobs.uploads import UploadService
from ...bodies.fields import Strict, read
from ...bodies.multipart import OVERHEAD, Form
from ...description.describe import describe
from ...exchanges.exchange import Exchange
from .objects import PURPOSE, part_object, upload_object
from .requests import CompleteUpload, CreateUpload
from .shapes import Upload, UploadPart


class PartForm(Strict):
    """The part of ``POST /v1/uploads/{id}/parts``."""

    data: bytes


class Uploads:
    """Takes files in parts, each with a call of its own."""

    def __init__(self, availability: Availability) -> None:
        self._availability = availability

    @describe(body=CreateUpload, answer=Upload)
    async def create(self, exchange: Exchange) -> None:
        """Begin one."""
        service, asked = self._service, read(CreateUpload, await exchange.json())
        if asked.purpose != PURPOSE:
            raise invalid_field("purpose", f"is {asked.purpose[:40]!r}; it must be {PURPOSE!r}")
        if asked.expires_after is not None:
            raise invalid_field("expires_after", "must be left out: files do not expire")
        upload = await service.create(calls.principal(), filename=asked.filename, size_bytes=asked.bytes)
        await exchange.send_json(upload_object(upload))

    @describe(form=PartForm, answer=UploadPart)
    async def add_part(self, exchange: Exchange) -> None:
        """Store a part as it comes; nothing is stored unless the whole form is as it must be."""
        service, limits = self._service, self._availability.open_context().limits
        async with aclosing(exchange.pieces(limits.max_part_bytes + OVERHEAD)) as pieces:
            form = Form(pieces, exchange.request_headers.get("content-type", ""))
            part = await service.add_part(_asked_for(exchange), _data(form), calls.principal())
        await exchange.send_json(part_object(part))

    @describe(body=CompleteUpload, answer=Upload)
    async def complete(self, exchange: Exchange) -> None:
        """Make a file of the parts."""
        service, asked = self._service, read(CompleteUpload, await exchange.json())
        found = await service.complete(_asked_for(exchange), asked.part_ids, calls.principal(), md5=asked.md5 or "")
        await exchange.send_json(upload_object(*found))

    @describe(answer=Upload)
    async def cancel(self, exchange: Exchange) -> None:
        """Drop one."""
        upload = await self._service.cancel(_asked_for(exchange), calls.principal())
        await exchange.send_json(upload_object(upload))

    @property
    def _service(self) -> UploadService:
        return self._availability.open().uploads


async def _data(form: Form) -> AsyncIterator[bytes]:
    """The bytes of the only part of a form, ``data``."""
    part = await form.next_part()
    if part is None:
        raise invalid_field("data", "is missing")
    if part.name != "data":
        raise invalid_field(part.name[:80], "is no field of this request; leave it out")
    async for piece in form.body():
        yield piece
    if (part := await form.next_part()) is not None:
        raise invalid_field(part.name[:80], "is one more field; a request has one part, as data")


def _asked_for(exchange: Exchange) -> str:
    id: str = exchange.path_params["upload_id"]
    return id
