"""Forms with files (``multipart/form-data``, RFC 7578), read as they come and never held as a whole."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass

from ...core.errors import Error, invalid_field

FORM_TYPE = "multipart/form-data"
MOST_HEADER_BYTES = 4 << 10
"""Bytes of the headers of one part."""
MOST_VALUE_BYTES = 4 << 10
"""Bytes of a part that is no file."""
MOST_PARTS = 32
OVERHEAD = MOST_PARTS * (MOST_HEADER_BYTES + MOST_VALUE_BYTES)
"""Bytes that a form may have beside its file."""

_BOUNDARY = re.compile(r"""boundary=(?:"([^"\r\n]{1,70})"|([^\s;"]{1,70}))""", re.IGNORECASE)
_PARAMETER = re.compile(r';\s*(name|filename)=(?:"((?:[^"\\]|\\.)*)"|([^\s;"]+))', re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Part:
    """The head of a part. ``filename`` is None for one that is no file; it is a label, and never a path."""

    name: str
    filename: str | None


class Form:
    """Reads a form part by part: ``next_part``, then ``body`` or ``value`` to its end, and again."""

    def __init__(self, pieces: AsyncIterator[bytes], content_type: str) -> None:
        kind, _, parameters = content_type.partition(";")
        found = _BOUNDARY.search(parameters)
        if kind.strip().lower() != FORM_TYPE or found is None:
            raise invalid_field("content-type", f"is {content_type[:80]!r}; send {FORM_TYPE} with a boundary")
        self._pieces = pieces
        self._delimiter = b"\r\n--" + (found[1] or found[2]).encode("latin-1", "replace")
        self._buffer = bytearray(b"\r\n")  # as if a line ended there: the first boundary has none before it
        self._parts = 0

    async def next_part(self) -> Part | None:
        """The head of the next part; None at the end of the form. The part before it must have been read."""
        if self._parts == 0 and await self._upto(self._delimiter, 2):
            raise _malformed("it does not begin with its boundary")
        after = await self._take(2)
        if after == b"--":
            async for _ in self._pieces:  # an epilogue says nothing
                pass
            return None
        self._parts += 1
        if self._parts > MOST_PARTS:
            raise _malformed(f"it has more than {MOST_PARTS} parts")
        if after != b"\r\n":
            raise _malformed("a boundary is followed by something else than a line's end")
        return _head(await self._upto(b"\r\n\r\n", MOST_HEADER_BYTES))

    async def body(self) -> AsyncIterator[bytes]:
        """The bytes of the current part, as they come."""
        async for piece in self._before(self._delimiter):
            yield piece

    async def value(self, name: str, most: int = MOST_VALUE_BYTES) -> str:
        """The text of the current part, which is called ``name`` and may have ``most`` bytes."""
        try:
            return (await self._upto(self._delimiter, most)).decode()
        except UnicodeDecodeError:
            raise invalid_field(name, "is not text in UTF-8") from None

    async def _before(self, mark: bytes) -> AsyncIterator[bytes]:
        """All bytes before ``mark``, which is taken away with them."""
        keep = len(mark) - 1
        while (at := self._buffer.find(mark)) < 0:
            if len(self._buffer) > keep:
                piece = bytes(self._buffer[:-keep])
                del self._buffer[:-keep]
                yield piece
            await self._more()
        piece = bytes(self._buffer[:at])
        del self._buffer[: at + len(mark)]
        if piece:
            yield piece

    async def _upto(self, mark: bytes, most: int) -> bytes:
        found = bytearray()
        async for piece in self._before(mark):
            found += piece
            if len(found) > most:
                raise _malformed(f"a header or a value has more than {most} bytes")
        return bytes(found)

    async def _take(self, count: int) -> bytes:
        while len(self._buffer) < count:
            await self._more()
        taken = bytes(self._buffer[:count])
        del self._buffer[:count]
        return taken

    async def _more(self) -> None:
        piece = await anext(self._pieces, None)
        if piece is None:
            raise _malformed("it ends before its last boundary")
        self._buffer += piece


def _head(lines: bytes) -> Part:
    for line in lines.decode("utf-8", "replace").split("\r\n"):
        header, _, value = line.partition(":")
        if header.strip().lower() == "content-disposition":
            given = {name.lower(): quoted or plain for name, quoted, plain in _PARAMETER.findall(value)}
            if "name" in given:
                return Part(given["name"], given.get("filename"))
    raise _malformed("a part has no name")


def _malformed(why: str) -> Error:
    return invalid_field("", f"the body is no form: {why}", reason="MALFORMED")
