"""JSON as callers write it, within bounds: what other parts of the server, and templates, can walk and write again."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from typing import Any, NoReturn

from ..bounds import utf8_size

MAX_DEPTH = 100
"""Most objects and lists inside each other, in values that are walked or written again."""
MAX_VALUES = 16_384
"""Most objects, lists and plain values in one JSON value of a request: what can be looked at in moments."""
TOO_DEEP = "is nested too deeply"
TOO_LARGE = "is a number that is too large"
A_NAME = "a field name"


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


def why_unusable(value: Any) -> str:
    """What keeps a JSON value of a request from being used, in words for its field; empty: nothing.

    Too many values, too deep, or :func:`unfit`. One walk, over ``MAX_VALUES`` values at most.
    """
    waiting: list[tuple[_Path | None, Any, int]] = [(None, value, 0)]
    seen = 0
    while waiting:
        path, each, depth = waiting.pop()
        seen += 1
        items: Iterable[tuple[str | int, Any]] = ()
        if isinstance(each, dict):
            items = each.items()
        elif isinstance(each, list):
            items = enumerate(each)
        elif what := _unfit(each):
            return _cannot_be_used(_written(path), what)
        else:
            continue
        if depth > MAX_DEPTH:
            return f"{TOO_DEEP}: at most {MAX_DEPTH} objects and lists may be inside each other"
        if seen + len(waiting) + len(each) > MAX_VALUES:
            return f"has more than {MAX_VALUES} values; that many are allowed"
        for step, item in items:
            if isinstance(step, str) and (what := _unfit(step)):
                return _cannot_be_used(A_NAME, what)
            waiting.append(((path, step), item, depth + 1))
    return ""


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
        if what := _unfit(item):
            yield path or A_NAME, what


def _unfit(item: Any) -> str:
    if isinstance(item, str):
        alone = not item.isascii() and utf8_size(item) is None
        return "holds a lone surrogate, which is not valid Unicode" if alone else ""
    return TOO_LARGE if isinstance(item, float) and math.isinf(item) else ""


def _cannot_be_used(path: str, what: str) -> str:
    return f"has a value that cannot be used: {path} {what}"


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
