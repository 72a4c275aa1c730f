"""Problems that many rows share, reported once with a count: another tool's format, answers that are labelled bad."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from loramux.formats import OTHER_SPELLING, OWN, format_of, recognised, told
from loramux.verdicts import Verdict, Verdicts, judges

from .fields import BadRow
from .problems import Problems
from .rows import WANTED, parse_row


@dataclass(slots=True)
class _Shared:
    """A problem, the line that has it first, and the number of rows that have it."""

    line: int
    description: str = ""
    count: int = 0


class SharedProblems:
    """Collects the problems of a dataset that rows share; :meth:`report` needs all rows to have been seen."""

    def __init__(self) -> None:
        self._formats: dict[str, _Shared] = {}
        self._verdicts = Verdicts()
        self._judged: list[tuple[int, dict[str, Any]]] = []

    def add_foreign(self, line: int, value: Mapping[str, Any], problem: str) -> bool:
        """Record a row that has a ``problem`` because it is in another tool's format. False: it is in none."""
        found = recognised(value)
        format = format_of(found)
        if format == OWN and found != value and _is_good(line, found):
            format = OTHER_SPELLING
        if format in ("", OWN):
            return False
        self._formats.setdefault(format, _Shared(line, problem.removesuffix(f"; {WANTED}"))).count += 1
        return True

    def add_judged(self, line: int, value: Mapping[str, Any]) -> None:
        """Record what a row without problems says of its own answer, if it has a label, rating or score."""
        if any(map(judges, value)):
            # The labels, and the names of the other fields, which decide how labels are read. No texts are kept.
            kept = {name: item if judges(name) else True for name, item in value.items() if item is not None}
            self._verdicts.look(kept)
            self._judged.append((line, kept))

    def report(self, problems: Problems) -> frozenset[int]:
        """Add one problem for each format and label; returns the lines of the rows whose answers are labelled bad."""
        for format, shared in self._formats.items():
            problems.add(shared.line, f"{shared.description}; {told(format)} ({_rows(shared.count)})")
        labels: dict[str, _Shared] = {}
        bad = set()
        for line, row in self._judged:
            verdict = self._verdicts.against(row)
            if verdict is not None:
                bad.add(line)
                labels.setdefault(verdict.column, _Shared(line, verdict.said)).count += 1
        for column, shared in labels.items():
            problems.add(shared.line, _labelled_bad(Verdict(column, shared.description), shared.count))
        return frozenset(bad)


def _is_good(line: int, value: Mapping[str, Any]) -> bool:
    try:
        parse_row(line, value)
    except BadRow:
        return False
    return True


def _labelled_bad(verdict: Verdict, count: int) -> str:
    others = f", as {count - 1} more rows are" if count > 2 else ", as one more row is" if count == 2 else ""
    return (
        f"{verdict.column[:40]} is {verdict.said}, so the answer is called bad{others}: it must not be learned as a"
        " good one. Leave such rows out (loramux datasets convert FILE does), or the column if it says something else"
    )


def _rows(count: int) -> str:
    return f"{count} row{'s' * (count != 1)}"
