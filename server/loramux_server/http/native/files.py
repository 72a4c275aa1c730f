"""Streams of files: forms as the requests of an upload, the responses of a download as a zip archive."""

from __future__ import annotations

import zipfile
from collections.abc import AsyncGenerator
from contextlib import ExitStack, aclosing
from typing import IO, Any, cast

from google.protobuf.message import Message

from ...core.errors import invalid_field
from ..bodies.multipart import Form
from ..exchanges.exchange import json_of
from .messages import message_of

MOST_HEADER_BYTES = 64 << 10
"""Bytes of the part ``header`` of an upload."""


async def upload_requests(form: Form, kind: type[Message]) -> AsyncGenerator[Message]:
    """The messages of an upload, of a ``kind`` that has a ``header`` or a ``chunk``.

    The form has its part ``header`` first, in JSON, and files after it: one where a chunk is bytes, else several, each
    by its name.
    """
    fields = kind.DESCRIPTOR.fields_by_name
    part = await form.next_part()
    if part is None or part.name != "header":
        raise invalid_field("header", "must be the first part of the form")
    header = json_of((await form.value("header", MOST_HEADER_BYTES)).encode())
    yield message_of(kind, {"header": header})
    named = fields["chunk"].message_type is not None
    files = 0
    while (part := await form.next_part()) is not None:
        files += 1
        if part.filename is None:
            raise invalid_field(part.name[:80], "is no file; give everything else in the part header")
        if files > 1 and not named:
            raise invalid_field(part.name[:80], "is a second file; one upload takes one")
        empty = True
        async for piece in form.body():
            empty = False
            yield _chunk(kind, part.filename, piece, named)
        if empty:
            yield _chunk(kind, part.filename, b"", named)


def _chunk(kind: type[Message], name: str, data: bytes, named: bool) -> Message:
    chunk: Any = {"name": name, "data": data} if named else data
    return kind(chunk=chunk)


async def archive(responses: AsyncGenerator[Any]) -> AsyncGenerator[bytes]:
    """A zip archive of the files of a download, as they come; they are stored as they are."""
    written = _Written()
    made = zipfile.ZipFile(cast("IO[bytes]", written), "w")  # it needs no more than to write
    sizes: dict[str, int] = {}
    name = ""
    with ExitStack() as open_file:
        async with aclosing(responses):
            async for response in responses:
                if response.HasField("header"):
                    sizes = {each.name: each.size for each in response.header.files}
                    continue
                if response.chunk.name != name:
                    open_file.close()
                    name = response.chunk.name
                    entry = zipfile.ZipInfo(name)
                    entry.file_size = sizes[name]
                    file = open_file.enter_context(made.open(entry, "w"))
                file.write(response.chunk.data)
                yield written.take()
    made.close()
    yield written.take()


class _Written:
    """Where an archive is written to that nobody keeps as a whole."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    def write(self, data: bytes, /) -> int:
        self._pieces.append(bytes(data))
        return len(data)

    def flush(self) -> None:
        """Nothing waits."""

    def take(self) -> bytes:
        """What was written since the last time."""
        taken = b"".join(self._pieces)
        self._pieces.clear()
        return taken
