"""JSON files as rows, a row at a time: one object a line, or one list of them, alone or as ``{"data": [...]}``."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from ..errors import invalid
from .encodings import encoding_of

MAX_ROW = 64 << 20
"""Longest row, in characters."""
_CHUNK = 1 << 18
_MARKS = re.compile(r'["{}\[\]]')
_QUOTED = re.compile(r'(?:[^"\\]++|\\.)*+', re.DOTALL)
"""What may be between two quotation marks; it ends before the second, or before a backslash that ends the text."""
_IN_DATA = re.compile(r'\s*\{\s*"data"\s*:\s*\[')


def json_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """The values of a file, each with its place (``line 7``, or ``row 7`` of a list); memory for one row at a time.

    Raises InvalidArgument, with the place, for what is not JSON, not text, or longer than a row may be.
    """
    with path.open("rb") as raw:
        encoding = encoding_of(raw.read(4))
    with path.open(encoding=encoding, newline="") as file:
        try:
            head = file.read(1024)
            listed = head.lstrip()[:1] == "[" or _IN_DATA.match(head)
            file.seek(0)
            yield from _list(path, file, head.lstrip()[:1] == "{") if listed else _lines(path, file)
        except UnicodeError as error:
            raise invalid("data", f"{path.name} is not {encoding.upper()} text: {str(error)[:100]}") from None


def _lines(path: Path, file: TextIO) -> Iterator[tuple[str, Any]]:
    number = 0
    while line := file.readline(MAX_ROW + 1):
        number += 1
        if len(line) > MAX_ROW:
            raise _too_long(path, f"line {number}")
        line = line.removeprefix("\ufeff")  # files that were put together keep their marks
        if line.strip():
            yield f"line {number}", _parsed(path, f"line {number}", line)


def _list(path: Path, file: TextIO, wrapped: bool) -> Iterator[tuple[str, Any]]:
    """The objects in the outermost list, found by brackets and quotes alone, then parsed one by one."""
    buffer, at, start, gap, number, inside = "", 0, -1, 0, 0, 0
    opened = quoted = False
    while chunk := file.read(_CHUNK):
        buffer += chunk
        while True:
            if quoted:
                text = _QUOTED.match(buffer, at)
                at = text.end() if text else at
                if buffer[at : at + 1] != '"':
                    break  # the text goes on in the next chunk
                quoted, at = False, at + 1
            mark = _MARKS.search(buffer, at)
            if mark is None:
                at = len(buffer)
                break
            sign, where, at = mark.group(), mark.start(), mark.end()
            if sign == '"':
                quoted = True
            elif not opened:
                opened, gap = sign == "[", at
            elif sign in "{[":
                if inside == 0:
                    _check_gap(path, number, buffer[gap:where])
                    start = where
                inside += 1
            elif sign in "}]" and inside == 0:
                _check_gap(path, number, buffer[gap:where])
                if not wrapped and (buffer[at:] + file.read(_CHUNK)).strip():
                    raise invalid("data", f"{path.name} goes on after its list; give one list, or a row a line")
                return
            elif sign in "}]":
                inside -= 1
                if inside == 0:
                    number += 1
                    yield f"row {number}", _parsed(path, f"row {number}", buffer[start:at])
                    start, gap = -1, at
        keep = start if start >= 0 else gap if opened else len(buffer)
        if len(buffer) - keep > MAX_ROW:
            raise _too_long(path, f"row {number + 1}")
        buffer, at, gap, start = buffer[keep:], at - keep, 0, min(start, 0)
    raise invalid("data", f"{path.name} ends within its list, after row {number}")


def _check_gap(path: Path, number: int, text: str) -> None:
    """What is between two rows of a list is a comma and white space; anything else would be lost without a word."""
    if (rest := text.strip(" \t\r\n")) not in ("", ","):
        raise invalid("data", f"{path.name}, after row {number}: {rest[:40]!r} is no JSON object")


def _parsed(path: Path, place: str, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise invalid("data", f"{path.name}, {place}: not JSON: {error.msg} at character {error.pos + 1}") from None
    except (ValueError, RecursionError) as error:
        what = "nested too deeply" if isinstance(error, RecursionError) else str(error)[:100]
        raise invalid("data", f"{path.name}, {place}: not JSON: {what}") from None


def _too_long(path: Path, place: str) -> Exception:
    return invalid("data", f"{path.name}, {place}: is longer than {MAX_ROW >> 20} MiB")
