"""Training data of other tools as loramux's rows: files are read a row at a time, so their size does not matter.

What is mapped, what is not used and what is left out is counted, and told with the first place of each.
"""

from __future__ import annotations

import json
import os
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

from ._rows import tables
from ._rows.json_rows import json_rows
from ._rows.other_tools import LeftOut, Made, made_of
from ._rows.reshape import as_messages, as_prompt
from ._wire.messages.fields import file_of, path_of, shown
from .errors import invalid
from .formats import UNCONVERTIBLE, format_of, recognised
from .verdicts import Verdicts

As = Literal["messages", "prompt"]
MAX_REASONS = 20
"""Most reasons for leaving rows out that are told apart."""
MAX_FIELDS = 1000
"""Most fields that are counted."""


@dataclass(slots=True)
class Summary:
    """What a conversion did."""

    read: int = 0
    written: int = 0
    formats: dict[str, int] = field(default_factory=dict)
    """Rows written, by the format that they came in."""
    unused: dict[str, int] = field(default_factory=dict)
    """Fields that went into nothing, with the rows that had them."""
    changes: dict[str, int] = field(default_factory=dict)
    """What was changed in rows that were written, and in how many."""
    left_out: dict[str, int] = field(default_factory=dict)
    """Why rows were not written, and how many; the first place is in the words."""

    def lines(self) -> Iterator[str]:
        """For people."""
        formats = ", ".join(f"{count} of the format {name}" for name, count in self.formats.items())
        yield f"{self.written} of {self.read} rows written: {formats or 'none'}"
        for what, count in self.changes.items():
            yield f"changed in {count}: {what}"
        if self.unused:
            names = sorted(self.unused.items(), key=lambda item: -item[1])
            yield (
                "not used: "
                + ", ".join(f"{name[:40]} ({count})" for name, count in names[:20])
                + (f" and {len(names) - 20} more" if len(names) > 20 else "")
            )
        for why, count in self.left_out.items():
            yield f"left out {count}: {why}"


def convert(source: str | os.PathLike[str], target: str | os.PathLike[str], *, as_: As | None = None) -> Summary:
    """Write the rows of a file as JSON lines that can be trained on; gives what was done.

    ``as_``: ``"messages"`` makes conversations of prompt + completion rows (and of pairs of texts), ``"prompt"`` plain
    prompts of conversations with one question; None leaves rows of loramux in the shape that they have. ``target`` is
    replaced when all is written, and stays as it was when anything fails. Raises InvalidArgument for a file that
    cannot be read, or of which no row can be used.
    """
    path, out = file_of("data", source), path_of("out", target)
    if out.exists() and not out.is_file():
        raise invalid("out", f"{str(out)!r} is no file")
    if not out.parent.is_dir():
        raise invalid("out", f"{str(out.parent)!r} is no folder")
    part = out.with_name(f".{out.name}.{uuid.uuid4().hex}")
    try:
        with part.open("xb") as file:
            summary = write_rows(lambda: rows_of(path), file, as_=as_)
        os.replace(part, out)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    return summary


def write_rows(rows: Callable[[], Iterator[tuple[str, Any]]], file: IO[bytes], *, as_: As | None = None) -> Summary:
    """As :func:`convert`, from what gives rows with their places, twice, into an open file."""
    if as_ not in (None, "messages", "prompt"):
        raise invalid("as", f"is {shown(as_)}; it must be messages or prompt")
    verdicts = Verdicts()
    for _, row in rows():  # ratings are read against the scale that the whole file shows
        if isinstance(row, Mapping):
            verdicts.look(row)
    read, first = 0, dict[str, tuple[str, int]]()
    formats, unused, changes = Counter[str](), Counter[str](), Counter[str]()
    for place, row in rows():
        read += 1
        try:
            if not isinstance(row, Mapping):
                raise LeftOut("is no JSON object")
            row = recognised(row)
            format, made, line = _converted(row, verdicts, as_)
        except LeftOut as out:
            why = str(out) if str(out) in first or len(first) < MAX_REASONS else "other reasons"
            at, count = first.get(why, (place, 0))
            first[why] = at, count + 1
            continue
        file.write(line)
        formats[format] += 1
        changes.update(made.changes)
        spare = (str(name) for name, value in row.items() if value is not None and name not in made.used)
        unused.update(name for name in spare if name in unused or len(unused) < MAX_FIELDS)
    left_out = {f"{why} ({at} first)": count for why, (at, count) in first.items()}
    summary = Summary(read, formats.total(), dict(formats), dict(unused), dict(changes), left_out)
    if not summary.written:
        why = "; ".join(list(summary.lines())[1:]) or "it has none"
        raise invalid("data", f"no row can be used: {why}")
    return summary


def rows_of(path: Path) -> Iterator[tuple[str, Any]]:
    """The rows of a file of any kind that is read, with their places: ``line 7``, or ``row 7`` of a list."""
    table = tables.converter(path, every=True)
    if table is None:
        yield from json_rows(path)
    else:
        yield from ((f"line {line}", row) for line, row in table(path))


def _converted(row: dict[str, Any], verdicts: Verdicts, as_: As | None) -> tuple[str, Made, bytes]:
    """The format of a row, what it became, and that as a line of JSON."""
    format = format_of(row)
    if format in UNCONVERTIBLE:
        raise LeftOut(f"is in the format {format}: {UNCONVERTIBLE[format]}")
    if not format:
        raise LeftOut(f"has no known shape (fields: {', '.join(sorted(str(n)[:40] for n in row)[:6]) or 'none'})")
    if (verdict := verdicts.against(row)) is not None:
        raise LeftOut(f"{verdict.column[:40]} says that the answer is bad")
    made = made_of(format, row)
    if as_ is not None:
        turned = as_messages(made.row) if as_ == "messages" else as_prompt(made.row)
        if turned is not made.row:
            made = Made(turned, made.used, [*made.changes, f"written as {as_}"])
    try:
        return format, made, json.dumps(made.row, ensure_ascii=False, allow_nan=False).encode("utf-8") + b"\n"
    except UnicodeEncodeError:
        raise LeftOut("holds half of a surrogate pair, which is no text") from None
    except ValueError:
        raise LeftOut("holds a number that JSON has no words for") from None
    except (TypeError, RecursionError):  # from rows of Python, not of a file
        raise LeftOut("holds a value that JSON has no words for, or is nested too deeply") from None
