"""Rows of a distillation: each beside what its teacher reads, which is the same row with a context before it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..core.jobs import TrainRow
from ..core.watch import UNWATCHED, Watch
from ..text.tokenizer import TextTokenizer
from .fields import BadRow, ChatRow, CompletionRow, TextRow, TooLong
from .label_masks import bad_rows, train_rows
from .preference_pairs import PairRow
from .rows import Content


@dataclass(frozen=True, slots=True)
class Teaching:
    """The context of a distillation, for rows that have none of their own."""

    context: str = ""
    required: bool = True
    """Whether a row without any context is refused; otherwise the teacher reads it as it is."""


def with_context(content: Content, context: str) -> Content:
    """A row as it would be asked with a context: as the system turn (before what is there), or before the prompt."""
    match content:
        case ChatRow(messages, trained):
            first = messages[0]
            if first["role"] == "system":
                system = {**first, "content": f"{context}\n\n{first['content']}"}
                return replace(content, messages=(system, *messages[1:]))
            system = {"role": "system", "content": context}
            return replace(content, messages=(system, *messages), trained=(False, *trained))
        case CompletionRow(prompt):
            return replace(content, prompt=f"{context}\n\n{prompt}")
        case PairRow(chosen):
            return with_context(chosen, context)
    return content


def is_unanswered(content: Content) -> bool:
    """Whether a row is a prompt alone, which the teacher has to answer."""
    match content:
        case ChatRow(trained=trained):
            return not any(trained)
        case CompletionRow(completion=completion):
            return not completion
    return False


def taught_rows(
    content: Content,
    context: str | None,
    teaching: Teaching,
    tokenizer: TextTokenizer,
    *,
    max_length: int,
    chat_template_kwargs: Mapping[str, Any],
    watch: Watch = UNWATCHED,
) -> tuple[TrainRow, ...]:
    """As :func:`~.label_masks.train_rows`, each row with its ``teacher``'s text.

    ``context`` is the row's own (empty: the teacher reads the row as it is), None that of ``teaching``. The row of
    a prompt alone has no loss token yet. Raises :class:`BadRow`, :class:`TooLong` and what ``watch`` raises.
    """
    if context is None:
        context = teaching.context
        if not context and teaching.required:
            raise BadRow(["the row has no context, and the job has none: give one of them a context"])
    if isinstance(content, TextRow):
        raise BadRow(["text has no prompt that a context could stand before; give prompt and completion"])
    if isinstance(content, PairRow):
        raise BadRow(["the row is a preference pair, and a distillation has none; give prompt and completion"])

    def tokenised(content: ChatRow | CompletionRow) -> tuple[TrainRow, ...]:
        if is_unanswered(content):
            return (_prompt(content, tokenizer, max_length, chat_template_kwargs),)
        return train_rows(
            content, tokenizer, max_length=max_length, chat_template_kwargs=chat_template_kwargs, watch=watch
        )

    rows = tokenised(content)
    if not context:
        return tuple(replace(row, teacher=row) for row in rows)
    told = with_context(content, context)
    assert isinstance(told, ChatRow | CompletionRow)
    try:
        taught = tokenised(told)
    except BadRow as bad:
        bad.problems[:] = [f"with the context before it: {problem}" for problem in bad.problems]
        raise
    if [_answers(row) for row in rows] != [_answers(row) for row in taught]:
        raise BadRow(["the chat template writes the answer in other tokens once the context is before it"])
    return tuple(replace(row, teacher=teacher) for row, teacher in zip(rows, taught, strict=True))


def _prompt(
    content: ChatRow | CompletionRow, tokenizer: TextTokenizer, max_length: int, chat_template_kwargs: Mapping[str, Any]
) -> TrainRow:
    """A prompt as a request asks it."""
    with bad_rows():
        if isinstance(content, CompletionRow):
            ids = tokenizer.encode(content.prompt)
        else:
            kwargs = {**chat_template_kwargs, **content.chat_template_kwargs}
            ids = tokenizer.encode_chat(content.messages, tools=content.tools, chat_template_kwargs=kwargs)
    if len(ids) >= max_length:
        raise TooLong(f"the row has {len(ids)} tokens before its answer", max_length - 1)
    return TrainRow(tuple(ids), (False,) * len(ids))


def _answers(row: TrainRow) -> list[int]:
    return [id for id, label in zip(row.input_ids, row.labels, strict=True) if label]
