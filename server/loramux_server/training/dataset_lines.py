"""From the bytes of a JSONL file (or a JSON list) to objects with line numbers, every problem noted."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

Report = Callable[[int, str], None]
"""Called with a line number (from 1) and what is wrong there."""

_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_BOM = b"\xef\xbb\xbf"


def read_objects(data: bytes, report: Report) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a dataset with the line each starts on; what cannot be read goes to ``report``."""
    if data.startswith(_UTF16):
        report(1, "the file is UTF-16; save it as UTF-8")
        return
    if data.startswith(_BOM):
        report(1, "starts with a byte order mark; save the file as UTF-8 without BOM")
        data = data[len(_BOM) :]
    read = _read_list if data.lstrip()[:1] == b"[" else _read_lines
    for line, value in read(data, report):
        if isinstance(value, dict):
            yield line, value
        else:
            report(line, f"is {_kind(value)}, not a JSON object")


def _read_lines(data: bytes, report: Report) -> Iterator[tuple[int, Any]]:
    for line, raw in enumerate(data.split(b"\n"), start=1):
        if not raw.strip():
            continue
        try:
            yield line, _DECODER.decode(raw.decode("utf-8"))
        except UnicodeDecodeError as error:
            report(line, f"is not valid UTF-8 at byte {error.start + 1} of the line")
        except json.JSONDecodeError as error:
            report(line, f"is not JSON: {error.msg} at character {error.pos + 1}")
        except (ValueError, RecursionError) as error:
            report(line, _refusal(error))


def _read_list(data: bytes, report: Report) -> Iterator[tuple[int, Any]]:
    """One JSON list over the whole file. When more follows the list, the file is read as lines after all."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        report(data.count(b"\n", 0, error.start) + 1, "is not valid UTF-8")
        return
    items: list[tuple[int, Any]] = []
    line, counted = 1, 0
    at = _skip(text, text.index("[") + 1)
    try:
        while text[at : at + 1] != "]":
            line, counted = line + text.count("\n", counted, at), at
            value, at = _DECODER.raw_decode(text, at)
            items.append((line, value))
            at = _skip(text, at)
            if text[at : at + 1] == ",":
                at = _skip(text, at + 1)
            elif text[at : at + 1] != "]":
                raise json.JSONDecodeError("expected ',' or ']'", text, at)
    except json.JSONDecodeError as error:
        yield from items
        report(error.lineno, f"is not JSON: {error.msg} at character {error.colno} of the line")
        return
    except (ValueError, RecursionError) as error:
        yield from items
        report(line, _refusal(error))
        return
    if text[at + 1 :].strip():
        yield from _read_lines(data, report)
    else:
        yield from items


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at


def _kind(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, str):
        return "a string"
    return "a list" if isinstance(value, list) else "a number"


def _refusal(error: Exception) -> str:
    return "is nested too deeply" if isinstance(error, RecursionError) else f"is not JSON: {str(error)[:100]}"


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON value")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)
