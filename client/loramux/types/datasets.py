"""Datasets and what a check finds in them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Dataset:
    """A stored dataset."""

    id: str
    name: str = ""
    digest: str = ""
    size_bytes: int = 0
    rows: int = 0
    created_at: float = 0.0


@dataclass(frozen=True, slots=True)
class DatasetProblem:
    """What is wrong with one line (counted from 1; 0: the whole file)."""

    line: int
    field: str
    description: str
    in_list: bool = False
    """Whether ``line`` is the number of a row in a JSON list whose rows share lines."""

    def __str__(self) -> str:
        place = f"{'row' if self.in_list else 'line'} {self.line}" if self.line else "dataset"
        return f"{place}, {self.field}: {self.description}" if self.field else f"{place}: {self.description}"


@dataclass(frozen=True, slots=True)
class DatasetNote:
    """What does not keep anyone from training, but may not be meant."""

    code: str
    """Stable word for programs, such as ``REPEATED_ROWS``."""
    text: str
    count: int = 0
    """Rows that it is about; 0: the dataset as a whole."""
    line: int = 0
    """The first of them; 0: none in particular."""

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class MarkedText:
    """Text of a tokenised row that is all learned or all not, special tokens shown."""

    text: str
    trained: bool


@dataclass(frozen=True, slots=True)
class MarkedRow:
    """A row as it is trained on, in parts; ``rejected`` is the other answer of a pair, after the same prompt."""

    line: int
    text: tuple[MarkedText, ...]
    rejected: tuple[MarkedText, ...] = ()
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class DatasetReport:
    """What a check of a dataset found. Counts are of the good rows; estimates are None where they cannot be told."""

    valid: bool
    problems: tuple[DatasetProblem, ...] = ()
    problems_total: int = 0
    rows: int = 0
    tokens: int = 0
    trained_tokens: int = 0
    longest_tokens: int = 0
    duplicates: int = 0
    estimated_steps: int = 0
    estimated_seconds: float | None = None
    estimated_memory_bytes: int | None = None
    estimated_from: str = ""
    """What the seconds were worked out from."""
    too_long: int = 0
    pairs: bool = False
    """Whether the rows are preference pairs."""
    warnings: tuple[str, ...] = ()
    """The texts of ``notes``."""
    notes: tuple[DatasetNote, ...] = ()
    shown: tuple[MarkedRow, ...] = ()
    """Rows as they are trained on, where some were asked for."""
