"""JSON as callers write it, within bounds: what other parts of the server, and templates, can walk and write again."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from typing import Any, NoReturn

from .bounds import utf8_size

MAX_DEPTH = 100
"""Most objects and lists inside each other, in values that are walked or written again."""
TOO_DEEP = "is nested too deeply"
TOO_LARGE = "is a number that is too large"


class BadJson(ValueError):
    """A text that is no JSON, or JSON beyond the bounds; says what is wrong, and at which character (from 0)."""

    def __init__(self, what: str, at: int | None = None) -> None:
        super().__init__(what)
        self.at = at


def decode(text: str) -> Any:
    """The value of a JSON text, nested as deeply as Python reads it. Raises :class:`BadJson`."""
    try:
        return _DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        raise _bad(error) from None


def decode_at(text: str, at: int) -> tuple[Any, int]:
    """The JSON value that begins at a character of a text, and where it ends. Raises :class:`BadJson`."""
    try:
        return _DECODER.raw_decode(text, at)
    except (ValueError, RecursionError) as error:
        raise _bad(error) from None


def too_deep(value: Any) -> bool:
    """Whether more than ``MAX_DEPTH`` objects and lists are inside each other."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [item for each in level for item in _items(each) if isinstance(item, dict | list)]
    return bool(level)


def leaves(value: Any) -> Iterator[tuple[str, Any]]:
    """All names and plain values in a JSON value with their paths (``messages[0].content``); a name's path is empty."""
    waiting: list[tuple[_Path | None, Any]] = [(None, value)]
    while waiting:
        path, each = waiting.pop()
        if isinstance(each, dict):
            for name, item in each.items():
                yield "", name
                waiting.append(((path, name), item))
        elif isinstance(each, list):
            waiting.extend(((path, index), item) for index, item in enumerate(each))
        else:
            yield _written(path), each


def unfit(value: Any) -> Iterator[tuple[str, str]]:
    """Places in a JSON value that hold what JSON can spell and nothing here can carry, and what that is.

    Half of a surrogate pair (D83D alone, say), which is no text, and numbers beyond every float.
    """
    for path, item in leaves(value):
        if isinstance(item, str):
            if not item.isascii() and utf8_size(item) is None:
                yield path or "a field name", "holds a lone surrogate, which is not valid Unicode"
        elif isinstance(item, float) and math.isinf(item):
            yield path, TOO_LARGE


_Path = tuple["_Path | None", str | int]
"""The path of what a value is in, and its name or number there."""


def _written(path: _Path | None) -> str:
    steps: list[str] = []
    while path is not None:
        path, step = path
        steps.append(f"[{step}]" if isinstance(step, int) else f".{step}")
    return "".join(reversed(steps)).removeprefix(".")


def _items(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def _bad(error: Exception) -> BadJson:
    if isinstance(error, BadJson):
        return error
    if isinstance(error, RecursionError):
        return BadJson(TOO_DEEP)
    if isinstance(error, json.JSONDecodeError):
        return BadJson(f"is not JSON: {error.msg}", error.pos)
    return BadJson(f"is not JSON: {str(error).partition(';')[0][:100]}")  # Python's bound on digits


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise BadJson(f"has the field {twice[:40]!r} twice in one object")
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise BadJson(f"is not JSON: {name} is no JSON value")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant, object_pairs_hook=_object)
