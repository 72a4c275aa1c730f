"""Datasets: from bytes to tokenised rows and a summary, or to one error that lists the problems."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, BinaryIO

from ..core.jobs import TrainRow
from ..core.notes import Note
from ..core.types import StackItem
from ..core.watch import UNWATCHED, Watch
from ..text.tokenizer import TextTokenizer
from .expect import Expected
from .fields import BadRow, TooLong
from .jsonl import read_objects
from .label_masks import train_rows
from .notes import PlainRows, asked_with, notes_on, plain_rows
from .overlap import Asked, asked_for
from .preference_pairs import PairRow
from .problems import Problems
from .rows import Content, DataRow, names_pair, parse_row
from .shared_problems import SharedProblems
from .teacher_rows import Teaching, taught_rows

_HEAD = 1 << 20


@dataclass(frozen=True, slots=True)
class DatasetLimits:
    """Bounds of a dataset."""

    max_bytes: int = 256 * 1024 * 1024
    max_rows: int = 200_000


@dataclass(frozen=True, slots=True)
class Example:
    """A tokenised row, the line that it comes from, and its own frozen stack if it has one.

    ``row.stack`` is None until ``on_top_of`` is resolved to adapter versions.
    """

    line: int
    row: TrainRow
    content: Content
    """What the row was tokenised from."""
    on_top_of: tuple[StackItem, ...] | None = None
    expect: Expected | None = None
    """The expected texts, where the row names them."""
    asked: Asked = ()

    @property
    def tokens(self) -> int:
        """Tokens that the model reads for the row; of a pair, those of both answers, each after the prompt."""
        return sum(len(side.input_ids) for side in _sides(self.row))

    @property
    def trained_tokens(self) -> int:
        return sum(sum(side.labels) for side in _sides(self.row))

    @property
    def longest(self) -> int:
        """Tokens of the row, or of the longer side of a pair."""
        return max(len(side.input_ids) for side in _sides(self.row))

    @property
    def teacher_tokens(self) -> int:
        """Tokens that a teacher reads for the row; 0 without a teacher."""
        return len(self.row.teacher.input_ids) if self.row.teacher is not None else 0


@dataclass(frozen=True, slots=True)
class DatasetSummary:
    """A summary of the good rows for people and for estimates. Lengths in tokens."""

    rows: int = 0
    examples: int = 0
    """Tokenised rows; more than ``rows`` where a template makes one conversation into several."""
    tokens: int = 0
    trained_tokens: int = 0
    longest: int = 0
    duplicates: int = 0
    """Rows that repeat an earlier one."""
    too_long: int = 0
    """Rows that are refused because they are too long."""
    pairs: bool = False
    """Whether the rows are preference pairs."""
    asked_with: str = ""
    """``messages`` or ``prompt``: how a request asks for what most rows train; empty: there are no rows."""
    plain: PlainRows | None = None
    """Rows that are trained on without the chat template, if there are any."""
    notes: tuple[Note, ...] = ()
    """What may be a mistake, and keeps no row from being trained on."""
    teacher_tokens: int = 0
    """Tokens that a teacher reads: the rows with their contexts."""
    longest_taught: int = 0
    """Tokens of the longest row as a teacher reads it."""
    unanswered: int = 0
    """Rows that are prompts alone: they are answered before training begins."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """The texts of ``notes``."""
        return tuple(note.text for note in self.notes)


@dataclass(frozen=True, slots=True)
class Dataset:
    """Tokenised rows and their summary."""

    examples: tuple[Example, ...]
    report: DatasetSummary

    @property
    def rows(self) -> tuple[TrainRow, ...]:
        return tuple(example.row for example in self.examples)

    @property
    def pairs(self) -> bool:
        """Whether the rows are preference pairs."""
        return self.report.pairs


def check_dataset(
    data: bytes,
    tokenizer: TextTokenizer,
    *,
    max_length: int,
    field: str = "data",
    limits: DatasetLimits | None = None,
    watch: Watch = UNWATCHED,
    held_out: bool = False,
    chat_template_kwargs: str = "",
    teaching: Teaching | None = None,
) -> tuple[Dataset, Problems]:
    """Parse, check and tokenise a dataset: JSONL, or a JSON list of rows, in UTF-8.

    Gives the good rows (there may be none) beside what is wrong with the others. ``max_length`` is the longest row in
    tokens; ``field`` is what the caller calls the data (``validation``). Of rows that may be ``held_out``, what counts
    as an answer (``expect``) is checked too. ``chat_template_kwargs`` is a JSON object as text that was checked, for
    the chat template of every row that does not say otherwise. With ``teaching`` the rows are those of a distillation.
    ``watch`` is called between rows and ends the work by raising. Raises INVALID_ARGUMENT only for data that are
    refused as a whole: too large, or without any row.
    """
    problems = Problems(field)
    kwargs = json.loads(chat_template_kwargs or "{}")
    rows = parse_dataset(data, problems, limits or DatasetLimits(), watch, distill=teaching is not None)
    pairs = bool(rows) and isinstance(rows[0].content, PairRow)
    good: list[DataRow] = []
    examples: list[Example] = []
    too_long = 0
    for row in rows:
        watch()
        if isinstance(row.content, PairRow) is not pairs:
            kinds = ("a preference pair", "none") if not pairs else ("no preference pair", "one")
            first = f"{problems.unit} {rows[0].line}"
            problems.add(row.line, f"the row is {kinds[0]}, and {first} is {kinds[1]}: split the file by kind")
            continue
        try:
            if held_out and row.expect_problems:
                raise BadRow(list(row.expect_problems))
            options: dict[str, Any] = {"max_length": max_length, "chat_template_kwargs": kwargs, "watch": watch}
            if teaching is None:
                made = train_rows(row.content, tokenizer, **options)
            else:
                made = taught_rows(row.content, row.context, teaching, tokenizer, **options)
        except BadRow as bad:
            problems.add(row.line, *bad.problems)
            too_long += isinstance(bad, TooLong)
            continue
        good.append(row)
        asked = asked_for(row.content)
        examples += [Example(row.line, each, row.content, row.on_top_of, row.expect, asked) for each in made]
    return Dataset(tuple(examples), _report(good, examples, too_long, pairs, tokenizer)), problems


def holds_pairs(file: BinaryIO) -> bool:
    """Whether the first row of a dataset says that it is a preference pair, without looking at the rest."""
    for size in (_HEAD, -1):  # the first row may be longer than that
        file.seek(0)
        for _, first in read_objects(file.read(size), lambda line, what: None):
            return names_pair(first)
    return False


def parse_dataset(
    data: bytes, problems: Problems, limits: DatasetLimits, watch: Watch = UNWATCHED, *, distill: bool = False
) -> list[DataRow]:
    """The rows of a dataset before tokenisation; what is wrong goes to ``problems``.

    Raises INVALID_ARGUMENT at once for data that is too large or empty.
    """
    if len(data) > limits.max_bytes:
        raise problems.refusal(f"the dataset has {len(data)} bytes; at most {limits.max_bytes} are taken: split it")
    rows: list[DataRow] = []
    shared = SharedProblems()
    seen = 0
    for line, value in read_objects(data, problems.add, problems.count_rows):
        watch()
        seen += 1
        if seen > limits.max_rows:
            raise problems.refusal(f"the dataset has more than {limits.max_rows} rows: split it")
        try:
            rows.append(parse_row(line, value, distill=distill))
            shared.add_judged(line, value)
        except BadRow as bad:
            if not shared.add_foreign(line, value, bad.problems[0]):
                problems.add(line, *bad.problems)
    if not seen and not problems.count:
        raise problems.refusal("the dataset has no rows; give at least one JSON object per line")
    bad_answers = shared.report(problems)
    return [row for row in rows if row.line not in bad_answers]


def counted(examples: Sequence[Example], report: DatasetSummary) -> DatasetSummary:
    """``report`` with its counts of rows and tokens taken from ``examples``."""
    return replace(
        report,
        rows=len({example.line for example in examples}),
        examples=len(examples),
        tokens=sum(example.tokens for example in examples),
        trained_tokens=sum(example.trained_tokens for example in examples),
        longest=max((example.longest for example in examples), default=0),
        teacher_tokens=sum(example.teacher_tokens for example in examples),
        longest_taught=max((example.teacher_tokens for example in examples), default=0),
        unanswered=len({example.line for example in examples if not any(example.row.labels)}),
    )


def _report(
    rows: list[DataRow], examples: list[Example], too_long: int, pairs: bool, tokenizer: TextTokenizer
) -> DatasetSummary:
    duplicates = len(rows) - len({_fingerprint(row) for row in rows})
    unanswered = [example.line for example in examples if not any(example.row.labels)]
    answered = [example for example in examples if any(example.row.labels)]
    endless = [example.line for example in answered if example.row.input_ids[-1] not in tokenizer.eos_token_ids]
    notes = tuple(notes_on(rows, duplicates, unanswered, endless, tokenizer)) if rows else ()
    return counted(
        examples,
        DatasetSummary(
            duplicates=duplicates,
            too_long=too_long,
            pairs=pairs,
            asked_with=asked_with(rows),
            plain=plain_rows(rows),
            notes=notes,
        ),
    )


def _sides(row: TrainRow) -> tuple[TrainRow, ...]:
    return (row,) if row.rejected is None else (row, row.rejected)


def _fingerprint(row: DataRow) -> str:
    stack = None if row.on_top_of is None else [(item.adapter, item.weight) for item in row.on_top_of]
    return json.dumps([type(row.content).__name__, asdict(row.content), stack, row.context], sort_keys=True)
