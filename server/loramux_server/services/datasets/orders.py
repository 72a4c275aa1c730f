"""What a worker is asked about datasets, and what it answers: plain messages, so that it may be another process."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from ...core.errors import Code, Error, FieldViolation, Reason
from ...core.notes import Note
from ...core.types import StackItem
from ...data.dataset import DatasetSummary
from ...data.expect import Expected
from ...data.label_masks import MarkedText
from .training_data import Source, Sources


class CheckOrder(msgspec.Struct, frozen=True, tag=True):
    """Look for what is wrong, and render ``show`` good rows from line ``from_line`` on."""

    sources: Sources
    show: int = 0
    from_line: int = 0


class RowsOrder(msgspec.Struct, frozen=True, tag=True):
    """Write a job's rows file."""

    sources: Sources
    folder: str
    base: str
    """Fingerprint of the base that the rows are tokenised for."""
    max_context: int
    judges_answers: bool = False
    """Whether the job's gate looks at answers, so that held-out rows must ask something."""
    compare_prompt: str = ""
    compare_documents: Source | None = None
    compare_top_k: int = 0


Order = CheckOrder | RowsOrder


class Delivery(msgspec.Struct, frozen=True):
    """What the process reads from its standard input; its answer goes to the standard output."""

    order: Order
    tokenizer: str
    """Folder of the tokenizer."""


@dataclass(frozen=True, slots=True)
class MarkedRow:
    """A row as it is trained on; of a pair, with either answer."""

    line: int
    text: tuple[MarkedText, ...]
    rejected: tuple[MarkedText, ...] = ()
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class FoundProblems:
    """What is wrong with a dataset: how often, and the first ones by ``unit`` (line or row)."""

    count: int = 0
    listed: tuple[tuple[int, str], ...] = ()
    unit: str = "line"


class Checked(msgspec.Struct, frozen=True, tag=True):
    """What was found out about a dataset."""

    refused: tuple[str, ...] = ()
    """Why the data, or the held-out data, are refused as a whole; the rest is empty then."""
    report: DatasetSummary = DatasetSummary()
    trained: DatasetSummary = DatasetSummary()
    """The counts of ``report`` with the rows that are replayed."""
    problems: FoundProblems = FoundProblems()
    held_out_problems: FoundProblems = FoundProblems()
    repeats: tuple[Note, ...] = ()
    """How many held-out rows are training rows."""
    row_stacks: tuple[tuple[StackItem, ...], ...] = ()
    """The stacks that rows name."""
    shown: tuple[MarkedRow, ...] = ()


class RowsSummary(msgspec.Struct, frozen=True, tag=True):
    """What the front needs of a job's rows. It lies in the rows file beside them."""

    base: str
    train: DatasetSummary
    train_digest: str
    held_out: DatasetSummary | None
    held_out_digest: str
    row_stacks: tuple[tuple[StackItem, ...], ...]
    """The stacks that rows name; a row of the file has an index into it."""
    notes: tuple[Note, ...]
    repeats: tuple[Note, ...]
    """How many held-out rows are training rows; the file has only the others, if there are any."""
    by_heart: bool
    """Whether all held-out rows are training rows: their metrics tell what was learned by heart, and decide nothing."""
    asked: tuple[int, ...]
    """Numbers of the held-out rows that are asked as questions."""
    expects: tuple[Expected | None, ...]
    """For each of these rows what counts as an answer, where the row says so."""
    passages: tuple[tuple[str, ...], ...] = ()
    """For each of these rows what was found for it in the documents that are compared, cut to be shown."""
    unanswered: int = 0
    """Rows that are prompts alone, to be answered before training begins."""


class Refused(msgspec.Struct, frozen=True, tag=True):
    """An error on its way out of a process."""

    code: str
    message: str
    reason: Reason
    violations: tuple[FieldViolation, ...]

    @classmethod
    def of(cls, error: Error) -> Refused:
        return cls(error.code.value, error.message, error.reason, tuple(error.violations))

    def error(self) -> Error:
        return Error(Code(self.code), self.message, reason=self.reason, violations=self.violations)


Answer = Checked | RowsSummary | Refused
