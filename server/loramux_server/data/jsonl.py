"""From the bytes of a JSONL file (or of one JSON list) to objects with line numbers, and a problem for what is not."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from ..core.reading.encodings import as_utf8
from ..core.reading.json_values import BadJson, decode, decode_at

Report = Callable[[int, str], None]
"""Called with a line number (from 1) and a problem."""

_BINARY = {
    b"PAR1": "a Parquet file",
    b"PK\x03\x04": "a zip file or a spreadsheet",
    b"\x1f\x8b": "compressed by gzip",
    b"\x28\xb5\x2f\xfd": "compressed by zstd",
}
_SPACE = re.compile(r"[ \t\r\n]*")
_IN_DATA = re.compile(r'\s*\{\s*"data"\s*:\s*\[')


def read_objects(
    data: bytes, report: Report, numbered: Callable[[], None] = lambda: None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a dataset with the line that each starts on; what cannot be read goes to ``report``.

    The file has one object a line, or is one list of objects, alone or as ``{"data": [...]}``. Where objects of a list
    share a line, ``numbered`` is called first, and they get their numbers in the list, from 1, instead of lines.
    """
    for magic, kind in _BINARY.items():
        if data.startswith(magic):
            report(1, f"the file is {kind}; send JSON lines (the Python client and the command line convert tables)")
            return
    try:
        data = as_utf8(data)
    except UnicodeDecodeError as error:
        encoding = error.encoding.upper()
        report(1, f"the file begins as {encoding} and is not valid {encoding}; save it as UTF-8")
        return
    whole = data.lstrip()[:1] == b"[" or _IN_DATA.match(data[:1024].decode("utf-8", "replace"))
    for line, value in _read_list(data, report, numbered) if whole else _read_lines(data, report):
        if isinstance(value, dict):
            yield line, value
        else:
            report(line, f"the row is {_kind(value)}, not a JSON object")


def _read_lines(data: bytes, report: Report) -> Iterator[tuple[int, Any]]:
    for line, raw in enumerate(data.split(b"\n"), start=1):
        raw = raw.removeprefix(codecs.BOM_UTF8)  # concatenated files keep their byte order marks
        if not raw.strip():
            continue
        try:
            value = decode(raw.decode("utf-8"))
        except UnicodeDecodeError as error:
            report(line, f"the line is not valid UTF-8 at byte {error.start + 1}; save the file as UTF-8")
        except BadJson as error:
            report(line, f"the row {error}" if error.at is None else f"the row {error} at character {error.at + 1}")
        else:
            yield line, value


def _read_list(data: bytes, report: Report, numbered: Callable[[], None]) -> Iterator[tuple[int, Any]]:
    """One JSON list over the whole file. Where more follows a bare list, the file is read as lines instead."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        report(data.count(b"\n", 0, error.start) + 1, "the line is not valid UTF-8; save the file as UTF-8")
        return
    items: list[tuple[int, Any]] = []
    line, counted = 1, 0
    wrapped = text.lstrip().startswith("{")
    at = _skip(text, text.index("[") + 1)
    try:
        while text[at : at + 1] != "]":
            line, counted = line + text.count("\n", counted, at), at
            value, at = decode_at(text, at)
            items.append((line, value))
            at = _skip(text, at)
            if text[at : at + 1] == ",":
                at = _skip(text, at + 1)
            elif text[at : at + 1] != "]":
                raise BadJson("is not JSON: expected ',' or ']'", at)
    except BadJson as error:
        yield from items
        if error.at is None:
            report(line, f"the row {error}")
        else:
            column = error.at - text.rfind("\n", 0, error.at)
            report(text.count("\n", 0, error.at) + 1, f"the row {error} at character {column} of the line")
        return
    rest = text[at + 1 :].strip()
    if rest and not wrapped:
        yield from _read_lines(data, report)
        return
    if len({line for line, _ in items}) < len(items):
        numbered()
        items = [(number, value) for number, (_, value) in enumerate(items, start=1)]
    yield from items
    if wrapped and not _ends_an_object(rest):
        report(
            text.count("\n", 0, at) + 1,
            'the file is not JSON: what follows the list in {"data": [...]} does not end the object',
        )


def _ends_an_object(rest: str) -> bool:
    try:
        return isinstance(decode('{"data": 0' + rest), dict)
    except BadJson:
        return False


def _skip(text: str, at: int) -> int:
    space = _SPACE.match(text, at)
    return space.end() if space else at


def _kind(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, str):
        return "a string"
    return "a list" if isinstance(value, list) else "a number"
