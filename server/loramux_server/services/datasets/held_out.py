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
    put: Callable[[Content, str, int], Content],
    field: str,
    chat_template_kwargs: str,
    text: TextTokenizer,
    max_context: int,
    watch: Watch = UNWATCHED,
) -> list[TrainRow]:
    """The rows with the numbers ``asked``, ``put`` after their ``contexts``; a row without one stays as it is.

    ``put`` is also told which of the row's answers is asked for. ``chat_template_kwargs`` are the job's. Raises
    INVALID_ARGUMENT (``field``) when a context cannot be put before a row, or leaves no room for its answer.
    """
    kwargs = json.loads(chat_template_kwargs or "{}")
    first = _first_rows(held_out)
    answers = _answers(asked, held_out)
    made: dict[tuple[int, str], tuple[TrainRow, ...]] = {}
    found: list[TrainRow] = []
    for number, context, answer in zip(asked, contexts, answers, strict=True):
        example, line = held_out[number], held_out[number].line
        if not context:
            found.append(example.row)
            continue
        if (line, context) not in made:
            made[line, context] = _rendered(put(example.content, context, answer), kwargs, line, field, text, watch)
        row = made[line, context][number - first[line]]
        ids, expected = last_answer(row)[0], last_answer(example.row)[1]
        if max_context - len(ids) < len(expected):
            raise invalid_field(
                field,
                f"leaves no room: line {line} of the held-out rows has {len(ids)} tokens with it, before an answer of "
                f"{len(expected)}, and the model's context is {max_context}; {SHORTER[field]}",
            )
        found.append(row)
    return found


def asked_texts(asked: Sequence[int], held_out: Sequence[Example]) -> list[str]:
    """What each of the rows with the numbers ``asked`` asks: its prompt, or the last user turn before its answer."""
    answers = _answers(asked, held_out)
    return [_asked(held_out[number].content, answer) for number, answer in zip(asked, answers, strict=True)]


def _first_rows(held_out: Sequence[Example]) -> dict[int, int]:
    """For each line the number of its first row: a conversation may be several."""
    return {example.line: i for i, example in reversed(list(enumerate(held_out)))}


def _answers(asked: Sequence[int], held_out: Sequence[Example]) -> list[int]:
    """Which of its learned answers each of the rows with the numbers ``asked`` asks for; -1: the last."""
    first = _first_rows(held_out)
    rows = Counter(example.line for example in held_out)
    lines = [(number, held_out[number].line) for number in asked]
    return [number - first[line] if rows[line] > 1 else -1 for number, line in lines]


def _user_turn(row: ChatRow, answer: int) -> int | None:
    """The place of the last user turn before a learned answer."""
    end = [i for i, learned in enumerate(row.trained) if learned][answer]
    return next((i for i in reversed(range(end)) if row.messages[i]["role"] == "user"), None)


def _asked(content: Content, answer: int) -> str:
    match content:
        case ChatRow(messages):
            place = _user_turn(content, answer)
            return "" if place is None else messages[place]["content"]
        case CompletionRow(prompt):
            return prompt
        case PairRow(chosen):
            return _asked(chosen, answer)
    return ""


def as_context(passages: Sequence[str]) -> str:
    """Passages as they are put before a row, the best one next to it; empty without any."""
    return "\n\n".join([PASSAGES, *reversed(passages)]) if passages else ""


def with_passages(content: Content, context: str, answer: int = -1) -> Content:
    """A row as it would be asked with passages: in the user turn that asks, before its words, or before the prompt.

    Control tokens in passages are text.
    """
    match content:
        case ChatRow(messages):
            if (place := _user_turn(content, answer)) is None:
                return with_context(content, context)
            turn = {**messages[place], "content": f"{context}\n\n{messages[place]['content']}"}
            return replace(content, messages=(*messages[:place], turn, *messages[place + 1 :]))
        case CompletionRow():
            return replace(content, passages=f"{context}\n\n")
        case PairRow(chosen):
            return with_passages(chosen, context, answer)
    return content


def with_context(content: Content, context: str, answer: int = -1) -> Content:
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
    content: Content, kwargs: Mapping[str, Any], line: int, field: str, text: TextTokenizer, watch: Watch
) -> tuple[TrainRow, ...]:
    try:
        return train_rows(content, text, chat_template_kwargs=kwargs, watch=watch)
    except BadRow as bad:
        raise invalid_field(field, f"cannot be put before line {line} of the held-out rows: {bad.problems[0]}") from bad
