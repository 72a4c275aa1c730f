"""Datasets: bytes in, tokenised rows and a report out, or one error that lists everything that is wrong."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass

from ..core.jobs import TrainRow
from ..core.types import StackItem
from ..text.tokenizer import TextTokenizer
from .dataset_lines import read_objects
from .dataset_problems import Problems
from .dataset_rows import BadRow, ChatRow, DataRow, parse_row
from .masks import train_rows


@dataclass(frozen=True, slots=True)
class DatasetLimits:
    """What a dataset may hold at most."""

    max_bytes: int = 256 * 1024 * 1024
    max_rows: int = 200_000


@dataclass(frozen=True, slots=True)
class Example:
    """A tokenised row, the line that it comes from, and its own frozen stack if it has one.

    ``row.stack`` is None: whoever resolves ``on_top_of`` to adapter versions sets it.
    """

    line: int
    row: TrainRow
    on_top_of: tuple[StackItem, ...] | None = None


@dataclass(frozen=True, slots=True)
class DatasetReport:
    """A summary for people and for estimates. Lengths in tokens."""

    rows: int
    examples: int
    """Tokenised rows; more than ``rows`` where a template makes one conversation into several."""
    tokens: int
    trained_tokens: int
    longest: int
    duplicates: int
    """Rows that say the same as an earlier one."""
    truncations: int = 0
    """Always 0: rows that are too long are refused, never cut."""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Dataset:
    """A checked, tokenised dataset."""

    examples: tuple[Example, ...]
    report: DatasetReport

    @property
    def rows(self) -> tuple[TrainRow, ...]:
        return tuple(example.row for example in self.examples)


def load_dataset(
    data: bytes,
    tokenizer: TextTokenizer,
    *,
    max_length: int,
    field: str = "data",
    limits: DatasetLimits | None = None,
) -> Dataset:
    """Parse, check and tokenise a dataset: JSONL, or a JSON list of rows, in UTF-8.

    ``max_length`` is the longest row in tokens; ``field`` is what the caller calls the data (``validation``).
    Raises INVALID_ARGUMENT with violations ``data[line N]``, every problem counted and the first 20 listed.
    """
    problems = Problems(field)
    rows = parse_dataset(data, problems, limits or DatasetLimits())
    examples: list[Example] = []
    for row in rows:
        try:
            made = train_rows(row.content, tokenizer)
        except BadRow as bad:
            problems.add(row.line, *bad.problems)
            continue
        longest = max(len(each.input_ids) for each in made)
        if longest > max_length:
            problems.add(row.line, f"has {longest} tokens; at most {max_length} are allowed: shorten or split it")
        examples += (Example(row.line, each, row.on_top_of) for each in made)
    problems.check()
    return Dataset(tuple(examples), _report(rows, examples, tokenizer))


def parse_dataset(data: bytes, problems: Problems, limits: DatasetLimits) -> list[DataRow]:
    """The rows of a dataset before tokenisation; what is wrong goes to ``problems``.

    Raises INVALID_ARGUMENT at once for data that is too large or empty.
    """
    if len(data) > limits.max_bytes:
        raise problems.refusal(f"has {len(data)} bytes; at most {limits.max_bytes} are taken: split it")
    rows: list[DataRow] = []
    seen = 0
    for line, value in read_objects(data, problems.add):
        seen += 1
        if seen > limits.max_rows:
            raise problems.refusal(f"has more than {limits.max_rows} rows: split it")
        try:
            rows.append(parse_row(line, value))
        except BadRow as bad:
            problems.add(line, *bad.problems)
        except RecursionError:
            problems.add(line, "is nested too deeply")
    if not seen and not problems.count:
        raise problems.refusal("has no rows; give at least one JSON object per line")
    return rows


def _report(rows: list[DataRow], examples: list[Example], tokenizer: TextTokenizer) -> DatasetReport:
    contents = Counter(_fingerprint(row) for row in rows)
    lengths = [len(example.row.input_ids) for example in examples]
    return DatasetReport(
        rows=len(rows),
        examples=len(examples),
        tokens=sum(lengths),
        trained_tokens=sum(sum(example.row.labels) for example in examples),
        longest=max(lengths),
        duplicates=len(rows) - len(contents),
        warnings=tuple(_warnings(rows, examples, len(rows) - len(contents), tokenizer)),
    )


def _warnings(rows: list[DataRow], examples: list[Example], duplicates: int, tokenizer: TextTokenizer) -> list[str]:
    warnings = []
    if len(rows) < 10:
        warnings.append(f"only {len(rows)} row{'s' * (len(rows) != 1)}: an adapter rarely learns from fewer than 10")
    if duplicates:
        warnings.append(f"{duplicates} row{'s repeat' if duplicates > 1 else ' repeats'} an earlier one")
    if ignored := Counter(name for row in rows for name in row.ignored):
        names = ", ".join(f"{name} ({count} rows)" for name, count in ignored.most_common(5))
        warnings.append(f"fields that are not used: {names}")
    unused = [row for row in rows if isinstance(row.content, ChatRow) and not row.content.trained[-1]]
    if unused:
        warnings.append(
            f"{len(unused)} conversation{'s do' if len(unused) > 1 else ' does'} not end with a learned assistant turn "
            f"(line {unused[0].line} first): what follows the last one is not used"
        )
    endless = [example for example in examples if example.row.input_ids[-1] not in tokenizer.eos_token_ids]
    if endless:
        warnings.append(
            f"the chat template ends answers without an end-of-sequence token (line {endless[0].line} first): "
            "the adapter does not learn to stop"
        )
    return warnings


def _fingerprint(row: DataRow) -> str:
    content = row.content
    fields = [getattr(content, name) for name in type(content).__dataclass_fields__]
    stack = None if row.on_top_of is None else [(item.adapter, item.weight) for item in row.on_top_of]
    return json.dumps([fields, stack], sort_keys=True)
