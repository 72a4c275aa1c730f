"""One event as one line, for programs or for people; what a client may have written in it can forge nothing.

A line of JSON is ASCII. In a line for people, text that a terminal would obey, or that looks like another field, is
quoted, and the lines of a traceback are indented. Long texts are cut.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any, TypeAlias

import msgspec

MOST_TEXT = 2_000
"""Characters of one value; a text that goes on is cut."""
MOST_ITEMS = 64
"""Items of a list or an object."""
MOST_DEPTH = 4
TRACE_HEAD, TRACE_TAIL = 50, 150
"""Lines of a traceback that are kept, from its beginning and from its end."""
FIRST = ("timestamp", "level", "logger", "event")
"""Fields that each line begins with."""
WHOLE_NUMBERS = 1 << 63

BOLD, DIM, CYAN = 1, 2, 36
"""Of a terminal."""
_NO_FIELDS = {*FIRST, "exception"}
_ONE_WORD = re.compile(r"[!#-&(-<>-\[\]-~]+").fullmatch
"""Text that is as good without quotes: ASCII without spaces, quotes, backslashes and equals signs."""

Event: TypeAlias = dict[str, Any]
_encode = msgspec.json.Encoder().encode


def cut(text: str, most: int = MOST_TEXT) -> str:
    """The beginning of a text, and how long it is."""
    return text if len(text) <= most else f"{text[:most]}... ({len(text)} characters)"


def cleaned(event: Mapping[str, Any]) -> Event:
    """The event with bounded values of plain types, the fields of every line first."""
    found = {key: event[key] for key in FIRST if key in event}
    found |= event
    return {
        key: _trace(value) if key == "exception" and isinstance(value, str) else plain(value)
        for key, value in found.items()
    }


def plain(value: Any, depth: int = 0) -> Any:
    """A value as JSON has it, bounded."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return cut(str(value))
    if isinstance(value, int):
        return int(value) if abs(value) < WHOLE_NUMBERS else cut(hex(value))
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if depth < MOST_DEPTH:
        if isinstance(value, Mapping):
            items = list(value.items())[:MOST_ITEMS]
            return {cut(str(key)): plain(each, depth + 1) for key, each in items}
        if isinstance(value, list | tuple | set | frozenset):
            return [plain(each, depth + 1) for each in list(value)[:MOST_ITEMS]]
    return cut(str(value))


def json_line(event: Event) -> str:
    """An event as JSON. Its values are of plain types."""
    try:
        line = _encode(event)
    except (msgspec.MsgspecError, UnicodeEncodeError, TypeError, OverflowError):  # half a character, as a rule
        return json.dumps(event, default=str)
    # JSON leaves line breaks and control characters beyond ASCII as they are, and the last one of ASCII.
    return (line.decode() if line.isascii() else json.dumps(event, default=str)).replace("\x7f", "\\u007f")


class ForPeople:
    """Renders events for people; in colours for terminals."""

    def __init__(self, *, colors: bool) -> None:
        paint = _painted if colors else _unpainted
        self._head = f"{paint('%s', DIM)} [{paint('%-8s', BOLD)}] {paint('%-24s', BOLD)} [{paint('%s', DIM)}]"
        self._field = f" {paint('%s', CYAN)}=%s"

    def __call__(self, event: Event) -> str:
        """An event as a line, and further ones that are indented where it has a traceback."""
        head = (event.get("timestamp", ""), event.get("level", ""), printable(str(event["event"])), event.get("logger"))
        fields = [self._field % (key, _shown(event[key])) for key in event if key not in _NO_FIELDS]
        trace = [f"\n    {printable(line)}" for line in str(event.get("exception", "")).splitlines()]
        return "".join((self._head % head, *fields, *trace))


def _shown(value: Any) -> str:
    """A value, quoted where it could be taken for more than one."""
    text = str(value)
    if isinstance(value, int | float) or _ONE_WORD(text):
        return text
    return printable(json.dumps(text, ensure_ascii=False))


def _painted(text: str, colour: int) -> str:
    return f"\x1b[{colour}m{text}\x1b[0m"


def _unpainted(text: str, colour: int) -> str:
    return text


def printable(text: str) -> str:
    """The text without what a terminal would obey: such characters are written as escapes."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _trace(text: str) -> str:
    """A traceback of bounded size: its beginning and its end, where the exception is."""
    lines = text.splitlines()
    if (left := len(lines) - TRACE_HEAD - TRACE_TAIL) > 0:
        lines[TRACE_HEAD:-TRACE_TAIL] = [f"... ({left} lines)"]
    return "\n".join(cut(line) for line in lines)
