"""Which held-out rows can be asked as questions, and the same rows with a prompt before them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ...core.errors import invalid_field
from ...core.jobs import TrainRow
from ...core.watch import UNWATCHED, Watch
from ...data.dataset import Example
from ...data.expect import plain
from ...data.fields import BadRow, ChatRow, CompletionRow
from ...data.label_masks import train_rows
from ...data.preference_pairs import PairRow
from ...data.rows import Content
from ...text import TextTokenizer

MAX_QUESTIONS = 256
"""More rows are sampled evenly."""

FIELD = "compare_prompt"


def rows_to_ask(held_out: Sequence[Example], text: TextTokenizer, watch: Watch = UNWATCHED) -> list[int]:
    """The numbers of the rows that ask something: those with a prompt before an answer that is not blank."""
    found = []
    for number, example in enumerate(held_out):
        watch()
        prompt, answer = last_answer(example.row)
        if len(prompt) > 1 and plain(text.decode_answer(answer)):  # nothing comes before the first token of a text
            found.append(number)
    step = max(1, len(found) / MAX_QUESTIONS)
    return [found[int(i * step)] for i in range(min(len(found), MAX_QUESTIONS))]


def last_answer(row: TrainRow) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Token ids of all that comes before a row's last learned stretch, and of that stretch."""
    end = len(row.labels) - row.labels[::-1].index(True)
    start = end
    while start and row.labels[start - 1]:
        start -= 1
    return row.input_ids[:start], row.input_ids[start:end]


def prompted(
    asked: Sequence[int],
    held_out: Sequence[Example],
    context: str,
    chat_template_kwargs: str,
    text: TextTokenizer,
    max_context: int,
    watch: Watch = UNWATCHED,
) -> list[TrainRow]:
    """The rows with the numbers ``asked``, each with a context before it. ``chat_template_kwargs`` are the job's.

    Raises INVALID_ARGUMENT (``compare_prompt``) when the context cannot be put before a row, or leaves no room for
    its answer.
    """
    kwargs = json.loads(chat_template_kwargs or "{}")
    first = {example.line: i for i, example in reversed(list(enumerate(held_out)))}
    made: dict[int, tuple[TrainRow, ...]] = {}
    found: list[TrainRow] = []
    for number in asked:
        example, line = held_out[number], held_out[number].line
        if line not in made:
            made[line] = _rendered(with_context(example.content, context), kwargs, line, text, watch)
        row = made[line][number - first[line]]
        ids, answer = last_answer(row)[0], last_answer(example.row)[1]
        if max_context - len(ids) < len(answer):
            raise invalid_field(
                FIELD,
                f"leaves no room: line {line} of the held-out rows has {len(ids)} tokens with it, before an answer of "
                f"{len(answer)}, and the model's context is {max_context}; shorten it",
            )
        found.append(row)
    return found


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


def _rendered(
    content: Content, kwargs: Mapping[str, Any], line: int, text: TextTokenizer, watch: Watch
) -> tuple[TrainRow, ...]:
    try:
        return train_rows(content, text, chat_template_kwargs=kwargs, watch=watch)
    except BadRow as bad:
        raise invalid_field(FIELD, f"cannot be put before line {line} of the held-out rows: {bad.problems[0]}") from bad
