"""Rows that must not be learned as they are, told once for all of them: answers called bad, other tools' formats."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from loramux.formats import OTHER_SPELLING, OWN, format_of, recognised, told
from loramux.verdicts import Verdict, Verdicts, judges

from .parts import BadRow
from .problems import Problems
from .rows import WANTED, parse_row


@dataclass(slots=True)
class _Lines:
    """The first line that something was found on, and how many there are."""

    first: int
    count: int = 0
    said: str = ""


class Doubts:
    """Collects them over a dataset; ``settle`` tells them, once the whole of it was looked at."""

    def __init__(self) -> None:
        self._formats: dict[str, _Lines] = {}
        self._verdicts = Verdicts()
        self._judged: list[tuple[int, dict[str, Any]]] = []

    def foreign(self, line: int, value: Mapping[str, Any], problem: str) -> bool:
        """Whether a row is in a format of other tools, which is why it has a problem; if so it is kept in mind."""
        found = recognised(value)
        format = format_of(found)
        if format == OWN and found != value and _is_good(line, found):
            format = OTHER_SPELLING
        if format in ("", OWN):
            return False
        self._formats.setdefault(format, _Lines(line, said=problem.removesuffix(f"; {WANTED}"))).count += 1
        return True

    def look(self, line: int, value: Mapping[str, Any]) -> None:
        """Take in what a good row says of its own answer."""
        if any(map(judges, value)):
            # Its names, and what else decides how they are meant; not the texts.
            kept = {name: item if judges(name) else True for name, item in value.items() if item is not None}
            self._verdicts.look(kept)
            self._judged.append((line, kept))

    def settle(self, problems: Problems) -> frozenset[int]:
        """Tell what was found; gives the lines of the rows whose answers are called bad."""
        for format, lines in self._formats.items():
            problems.add(lines.first, f"{lines.said}; {told(format)} ({_rows(lines.count)})")
        found: dict[str, _Lines] = {}
        bad = set()
        for line, row in self._judged:
            verdict = self._verdicts.against(row)
            if verdict is not None:
                bad.add(line)
                found.setdefault(verdict.column, _Lines(line, said=verdict.said)).count += 1
        for column, lines in found.items():
            problems.add(lines.first, _against(Verdict(column, lines.said), lines.count))
        return frozenset(bad)


def _is_good(line: int, value: Mapping[str, Any]) -> bool:
    try:
        parse_row(line, value)
    except BadRow:
        return False
    return True


def _against(verdict: Verdict, count: int) -> str:
    others = f", as {count - 1} more rows are" if count > 2 else ", as one more row is" if count == 2 else ""
    return (
        f"{verdict.column[:40]} is {verdict.said}, so the answer is called bad{others}: it must not be learned as a"
        " good one. Leave such rows out (loramux datasets convert FILE does), or the column if it says something else"
    )


def _rows(count: int) -> str:
    return f"{count} row{'s' * (count != 1)}"
