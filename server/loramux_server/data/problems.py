"""What is wrong with a dataset: problems collected by line, and raised as one error."""

from __future__ import annotations

from collections.abc import Iterable

from ..core.errors import Code, Error, FieldViolation

SHOWN = 20
"""Most problems that an error lists; all are counted."""
_LONGEST = 300
"""Longest description of one problem, in characters: errors travel in headers."""


class Problems:
    """Problems of a dataset, by line. ``field`` is the caller's name of the data, such as ``validation``."""

    def __init__(
        self, field: str = "data", count: int = 0, found: Iterable[tuple[int, str]] = (), unit: str = "line"
    ) -> None:
        """``count`` and ``found``: problems that are known already, in total and by line."""
        self.field = field
        self.count = count
        self.unit = unit
        """What the numbers count: lines of the file, or rows of a JSON list."""
        self._found = list(found)

    def add(self, line: int, *descriptions: str) -> None:
        """Add problems of a line, counted from 1."""
        self.count += len(descriptions)
        self._found += ((line, _shortened(description)) for description in descriptions)
        if len(self._found) > 50 * SHOWN:
            self._found = self.listed()

    def count_rows(self) -> None:
        """Take the numbers as those of rows in a JSON list, several of which share a line."""
        self.unit = "row"

    def listed(self) -> list[tuple[int, str]]:
        """The problems of the earliest lines, at most SHOWN: parsing and tokenising find them in two passes."""
        return sorted(self._found, key=lambda problem: problem[0])[:SHOWN]

    def check(self) -> None:
        """Raise one INVALID_ARGUMENT error with violations ``data[line N]`` if there is any problem."""
        if not self.count:
            return
        first = self.listed()
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


def _shortened(text: str) -> str:
    # The text may quote half of a surrogate pair, which cannot be sent.
    text = text[: _LONGEST + 1].encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."
