"""Which held-out rows can be asked as questions, and the same rows with a prompt or passages before them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
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
from ...data.teacher_rows import with_context
from ...text import TextTokenizer

MAX_QUESTIONS = 256
"""More rows are sampled evenly."""

PROMPT, DOCUMENTS = "compare_prompt", "compare_documents"
"""Fields of a job whose texts are put before its held-out rows."""
SHORTER = {PROMPT: "shorten it", DOCUMENTS: "give compare_top_k a smaller number"}
PASSAGES = "Use these passages to answer:"


def rows_to_ask(held_out: Sequence[Example], text: TextTokenizer, watch: Watch = UNWATCHED) -> list[int]:
    """The numbers of the rows that ask something: those with a prompt before an answer that is not blank."""
    found = []
    for number, example in enumerate(held_out):
        watch()
        if not any(example.row.labels):
            continue  # nothing tells what would be right
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
    contexts: Sequence[str],
    put: Callable[[Content, str], Content],
    field: str,
    chat_template_kwargs: str,
    text: TextTokenizer,
    max_context: int,
    watch: Watch = UNWATCHED,
) -> list[TrainRow]:
    """The rows with the numbers ``asked``, ``put`` after their ``contexts``; a row without one stays as it is.

    ``chat_template_kwargs`` are the job's. Raises INVALID_ARGUMENT (``field``) when a context cannot be put before a
    row, or leaves no room for its answer.
    """
    kwargs = json.loads(chat_template_kwargs or "{}")
    first = _first_rows(held_out)
    made: dict[tuple[int, str], tuple[TrainRow, ...]] = {}
    found: list[TrainRow] = []
    for number, context in zip(asked, contexts, strict=True):
        example, line = held_out[number], held_out[number].line
        if not context:
            found.append(example.row)
            continue
        if (line, context) not in made:
            made[line, context] = _rendered(put(example.content, context), kwargs, line, field, text, watch)
        row = made[line, context][number - first[line]]
        ids, answer = last_answer(row)[0], last_answer(example.row)[1]
        if max_context - len(ids) < len(answer):
            raise invalid_field(
                field,
                f"leaves no room: line {line} of the held-out rows has {len(ids)} tokens with it, before an answer of "
                f"{len(answer)}, and the model's context is {max_context}; {SHORTER[field]}",
            )
        found.append(row)
    return found


def asked_texts(asked: Sequence[int], held_out: Sequence[Example]) -> list[str]:
    """What each of the rows with the numbers ``asked`` asks: its prompt, or the last user turn before its answer."""
    first = _first_rows(held_out)
    rows = Counter(example.line for example in held_out)
    lines = [(number, held_out[number].line) for number in asked]
    return [_asked(held_out[number].content, number - first[line] if rows[line] > 1 else -1) for number, line in lines]


def _first_rows(held_out: Sequence[Example]) -> dict[int, int]:
    """For each line the number of its first row: a conversation may be several."""
    return {example.line: i for i, example in reversed(list(enumerate(held_out)))}


def _asked(content: Content, answer: int) -> str:
    """What the row asks before the learned answer of this number; -1: the last."""
    match content:
        case ChatRow(messages, trained):
            end = [i for i, learned in enumerate(trained) if learned][answer]
            turns = [message for message in messages[:end] if message["role"] == "user"]
            return turns[-1]["content"] if turns else ""
        case CompletionRow(prompt):
            return prompt
        case PairRow(chosen):
            return _asked(chosen, answer)
    return ""


def as_context(passages: Sequence[str]) -> str:
    """Passages as they are put before a row, the best one next to it; empty without any."""
    return "\n\n".join([PASSAGES, *reversed(passages)]) if passages else ""


def with_passages(content: Content, context: str) -> Content:
    """A row as it would be asked with passages: where a prompt would be, but control tokens in them are text."""
    match content:
        case CompletionRow():
            return replace(content, passages=f"{context}\n\n")
        case PairRow(chosen):
            return with_passages(chosen, context)
    return with_context(content, context)


def _rendered(
    content: Content, kwargs: Mapping[str, Any], line: int, field: str, text: TextTokenizer, watch: Watch
) -> tuple[TrainRow, ...]:
    try:
        return train_rows(content, text, chat_template_kwargs=kwargs, watch=watch)
    except BadRow as bad:
        raise invalid_field(field, f"cannot be put before line {line} of the held-out rows: {bad.problems[0]}") from bad
