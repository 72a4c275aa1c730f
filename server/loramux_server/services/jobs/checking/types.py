"""What a check of a dataset answers."""

from __future__ import annotations

from dataclasses import dataclass

from ....core.notes import Note
from ...datasets.orders import MarkedRow


@dataclass(frozen=True, slots=True)
class RowProblem:
    """What is wrong with one line of a dataset (lines count from 1; 0: the whole file)."""

    line: int
    description: str
    field: str = ""
    in_list: bool = False
    """Whether ``line`` is the number of a row in a JSON list."""


@dataclass(frozen=True, slots=True)
class DatasetReport:
    """What a dataset holds, found without training on it. Counts are of the good rows."""

    rows: int = 0
    tokens: int = 0
    trained_tokens: int = 0
    """Tokens that carry loss."""
    longest_tokens: int = 0
    """Tokens of the longest row."""
    duplicates: int = 0
    estimated_steps: int = 0
    problems: tuple[RowProblem, ...] = ()
    """The first ones, by line."""
    problems_total: int = 0
    too_long: int = 0
    """Rows that are refused because they are too long."""
    pairs: bool = False
    notes: tuple[Note, ...] = ()
    """What may not be meant."""
    estimated_seconds: float | None = None
    """Of training on this machine with nothing else to do; None: not known."""
    estimated_memory_bytes: int | None = None
    """Peak beside what serving holds."""
    estimated_from: str = ""
    """What the seconds were worked out from."""
    shown: tuple[MarkedRow, ...] = ()

    @property
    def warnings(self) -> tuple[str, ...]:
        """The texts of ``notes``."""
        return tuple(note.text for note in self.notes)

    @property
    def ok(self) -> bool:
        return self.problems_total == 0
