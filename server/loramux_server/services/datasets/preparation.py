"""The work on datasets, wherever it is done: on a thread for small ones, in a process for large ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec

from ...core.errors import Error, FieldViolation, invalid
from ...core.jobs import TrainRow
from ...core.types import StackItem
from ...core.watch import UNWATCHED, Watch
from ...data.dataset import Dataset, Example, counted
from ...data.documents import read_passages
from ...data.label_masks import render_marked
from ...data.problems import Problems
from ...data.rows import Content
from ...data.rows_file import HELD_OUT, PROMPTED, RETRIEVED, TRAIN, write_rows
from ...data.teacher_rows import with_context
from ...text import TextTokenizer
from .held_out import (
    DOCUMENTS,
    PROMPT,
    as_context,
    asked_texts,
    prompted,
    rows_to_ask,
    with_passages,
)
from .orders import Checked, CheckOrder, FoundProblems, MarkedRow, Order, RowsOrder, RowsSummary
from .retrieval import PassageIndex
from .training_data import Source, check_source, load_data, load_replay, without_trained

MAX_SHOWN_CHARS = 1 << 20
MAX_SHOWN_PASSAGE = 300


def carry_out(order: Order, text: TextTokenizer, watch: Watch = UNWATCHED) -> Checked | RowsSummary:
    """Do what an order says; blocking, until ``watch`` says that nobody waits."""
    return _check(order, text, watch) if isinstance(order, CheckOrder) else _make_rows(order, text, watch)


def _check(order: CheckOrder, text: TextTokenizer, watch: Watch) -> Checked:
    """Raises DATA_LOSS for a damaged file, INVALID_ARGUMENT for rows to replay that are wrong."""
    sources = order.sources
    held_out: Dataset | None = None
    others = Problems("validation")
    try:
        held = sources.spec.validation_split > 0
        data, problems = check_source(sources, sources.data, "data", text, held_out=held, watch=watch)
        if sources.validation is not None:
            held_out, others = check_source(sources, sources.validation, "validation", text, held_out=True, watch=watch)
    except Error as error:
        if error.reason != "DATASET_INVALID":
            raise
        return Checked(refused=tuple(violation.description for violation in error.violations))
    replay = load_replay(sources, text, watch) if data.examples else None
    trained = data.examples + (replay.examples if replay else ())
    return Checked(
        report=data.report,
        trained=counted(trained, data.report),
        problems=_found(problems),
        held_out_problems=_found(others),
        repeats=without_trained(held_out, trained)[1] if held_out and data.examples else (),
        row_stacks=tuple(dict.fromkeys(e.on_top_of for e in data.examples if e.on_top_of is not None)),
        shown=_shown(data, order.show, order.from_line, text, watch),
    )


def _make_rows(order: RowsOrder, text: TextTokenizer, watch: Watch) -> RowsSummary:
    """Raises INVALID_ARGUMENT for rows that are wrong or cannot be asked, DATA_LOSS, and as :func:`write_rows`."""
    data = load_data(order.sources, text, watch)
    held_out = data.validation.examples if data.validation else ()
    asked: list[int] = []
    compared = {PROMPT: bool(order.compare_prompt), DOCUMENTS: order.compare_documents is not None}
    if order.judges_answers or any(compared.values()) or any(example.expect for example in held_out):
        asked = rows_to_ask(held_out, text, watch)
    if held_out and not asked:
        wanted = {"gate": order.judges_answers, **compared}
        words = "no held-out row has a prompt before its answer to ask the model"
        if any(wanted.values()):
            raise invalid([FieldViolation(name, words) for name, given in wanted.items() if given])
    source = order.sources.validation or order.sources.data

    def with_texts(contexts: Sequence[str], put: Callable[[Content, str], Content], field: str) -> list[TrainRow]:
        kwargs = order.sources.spec.chat_template_kwargs
        return prompted(asked, held_out, contexts, put, field, kwargs, text, order.max_context, watch)

    with_prompt: list[TrainRow] = []
    retrieved: list[TrainRow] = []
    passages: list[tuple[str, ...]] = []
    if order.compare_prompt:
        with_prompt = with_texts([order.compare_prompt] * len(asked), with_context, PROMPT)
    if order.compare_documents is not None and asked:
        passages = _passages(order.compare_documents, order.compare_top_k, asked_texts(asked, held_out), watch)
        retrieved = with_texts([as_context(found) for found in passages], with_passages, DOCUMENTS)
    answered_before = held_out if order.sources.spec.on_policy else data.examples
    summary = RowsSummary(
        base=order.base,
        train=data.train.report,
        train_digest=order.sources.data.sha256,
        held_out=data.validation.report if data.validation else None,
        held_out_digest=source.sha256 if data.validation else "",
        row_stacks=data.row_stacks,
        notes=data.notes,
        repeats=data.repeats,
        by_heart=data.by_heart,
        asked=tuple(asked),
        expects=tuple(held_out[number].expect for number in asked),
        passages=tuple(tuple(passage[:MAX_SHOWN_PASSAGE] for passage in found) for found in passages),
        unanswered=sum(not any(example.row.labels) for example in answered_before),
    )
    tables = {
        TRAIN: _with_stacks(data.trained, data.row_stacks),
        HELD_OUT: _with_stacks(held_out, data.row_stacks),
        PROMPTED: with_prompt,
        RETRIEVED: retrieved,
    }
    write_rows(Path(order.folder), tables, msgspec.msgpack.encode(summary))
    return summary


def _passages(documents: Source, count: int, questions: Sequence[str], watch: Watch) -> list[tuple[str, ...]]:
    """The best passages for each question, the best first. Raises INVALID_ARGUMENT, DATA_LOSS."""
    index = PassageIndex(read_passages(documents.read(), DOCUMENTS, watch))
    found = []
    for question in questions:
        watch()
        found.append(index.best(question, count))
    return found


def _with_stacks(examples: Iterable[Example], stacks: tuple[tuple[StackItem, ...], ...]) -> Iterable[TrainRow]:
    """The rows, each with the index of the stack that it names."""
    numbers = {stack: i for i, stack in enumerate(stacks)}
    return (e.row if e.on_top_of is None else replace(e.row, stack=numbers[e.on_top_of]) for e in examples)


def _found(problems: Problems) -> FoundProblems:
    return FoundProblems(problems.count, tuple(problems.listed()), problems.unit)


def _shown(data: Dataset, count: int, from_line: int, text: TextTokenizer, watch: Watch) -> tuple[MarkedRow, ...]:
    """Rows as they are trained on, special tokens shown."""
    rows: list[MarkedRow] = []
    room = MAX_SHOWN_CHARS
    for example in data.examples:
        watch()
        if len(rows) == count:
            break
        if example.line < from_line:
            continue
        other = example.row.rejected
        chosen, rejected = render_marked(example.row, text), render_marked(other, text) if other is not None else ()
        room -= sum(len(segment.text) for segment in chosen + rejected)
        if rows and room < 0:
            break
        rows.append(MarkedRow(example.line, chosen, rejected, example.tokens))
    return tuple(rows)
