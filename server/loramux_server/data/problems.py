"""What is wrong with a dataset: collected line by line, raised as one error."""

from __future__ import annotations

from collections.abc import Iterable

from ..core.errors import Code, Error, FieldViolation

SHOWN = 20
"""Most problems that an error lists; all are counted."""
_LONGEST = 300
"""Longest description of one problem, in characters: errors travel in headers."""


class Problems:
    """Collects problems by line. ``field`` is what the caller calls the data, ``count`` and ``found`` what is known."""

    def __init__(
        self, field: str = "data", count: int = 0, found: Iterable[tuple[int, str]] = (), unit: str = "line"
    ) -> None:
        self.field = field
        self.count = count
        self.unit = unit
        """What the numbers count: lines of the file, or rows of a JSON list."""
        self._found = list(found)

    def add(self, line: int, *descriptions: str) -> None:
        """Note what is wrong on a line, counted from 1."""
        self.count += len(descriptions)
        self._found += ((line, _shortened(description)) for description in descriptions)
        if len(self._found) > 50 * SHOWN:
            self._found = self._first()

    def count_rows(self) -> None:
        """Say that the numbers are those of rows in a JSON list, several of which share a line."""
        self.unit = "row"

    def listed(self) -> list[tuple[int, str]]:
        """The first problems, by line."""
        return self._first()

    def check(self) -> None:
        """Raise one INVALID_ARGUMENT error with violations ``data[line N]`` if there was any problem."""
        if not self.count:
            return
        first = self._first()
        violations = [FieldViolation(f"{self.field}[{self.unit} {line}]", description) for line, description in first]
        message = f"{self.count} problem{'s' if self.count > 1 else ''} in the dataset: "
        message += "; ".join(f"{self.unit} {line}: {description}" for line, description in first)
        if hidden := self.count - len(first):
            message += f"; and {hidden} more"
            violations.append(FieldViolation(self.field, f"and {hidden} more problems; mend these and validate again"))
        raise Error(Code.INVALID_ARGUMENT, message, reason="DATASET_INVALID", violations=violations)

    def refusal(self, description: str) -> Error:
        """The error for a dataset that is refused as a whole."""
        return Error(
            Code.INVALID_ARGUMENT,
            f"{self.field}: {description}",
            reason="DATASET_INVALID",
            violations=[FieldViolation(self.field, description)],
        )

    def _first(self) -> list[tuple[int, str]]:
        """The problems of the earliest lines: parsing and tokenising find them in two passes."""
        return sorted(self._found, key=lambda problem: problem[0])[:SHOWN]


def _shortened(text: str) -> str:
    # Words of the caller's may hold half of a surrogate pair, which no answer could carry.
    text = text[: _LONGEST + 1].encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."
