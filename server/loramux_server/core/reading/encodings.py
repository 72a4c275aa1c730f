"""Byte order marks, which editors and spreadsheets write: text in another encoding of Unicode becomes UTF-8."""

from __future__ import annotations

import codecs
from contextlib import suppress
from pathlib import Path

_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


def as_utf8(data: bytes) -> bytes:
    """``data`` without the byte order mark that it begins with, in UTF-8. Without one they are given back as they are.

    Raises UnicodeDecodeError where UTF-16 or UTF-32 is announced and what follows is not.
    """
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            rest = data[len(mark) :]
            return rest if encoding == "utf-8" else rest.decode(encoding).encode("utf-8")
    return data


def without_mark(path: Path, max_bytes: int) -> None:
    """Write a small file again without its byte order mark, in UTF-8; one that has none, or is larger, stays."""
    if not path.is_file() or path.stat().st_size > max_bytes:
        return
    data = path.read_bytes()
    with suppress(UnicodeDecodeError):
        if (plain := as_utf8(data)) is not data:
            path.write_bytes(plain)
