"""Label masks: which tokens of a row are loss tokens.

One rule for all shapes: the tokens before an answer are exactly those of a request that asks for it, and each answer
ends with one end token, which is a loss token too. So no token spans the border between prompt and answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from ..core.errors import Code, Error
from ..core.jobs import TrainRow
from ..core.watch import UNWATCHED, Watch
from ..text.tokenizer import TextTokenizer
from .conversation_masks import Labelled, chat_rows, excerpt
from .fields import BadRow, ChatRow, CompletionRow, TextRow, TooLong
from .preference_pairs import PairRow
from .rows import Content

CONTEXT = 16
"""Tokens of context after which decoding no longer depends on what came before; a character has at most four."""


@dataclass(frozen=True, slots=True)
class MarkedText:
    """The text of neighbouring tokens that are all loss tokens (``trained``), or all not."""

    text: str
    trained: bool


@contextmanager
def bad_rows() -> Iterator[None]:
    """Raise :class:`BadRow` for what tokenizer and chat template refuse; a cancel or a deadline goes through."""
    try:
        yield
    except Error as error:
        if error.code in (Code.CANCELLED, Code.DEADLINE_EXCEEDED):
            raise
        raise BadRow([violation.description for violation in error.violations] or [error.message]) from error


def train_rows(
    content: Content,
    tokenizer: TextTokenizer,
    *,
    max_length: int | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    watch: Watch = UNWATCHED,
) -> tuple[TrainRow, ...]:
    """Token ids and labels of one dataset row.

    A preference pair gives one row, with the other answer in ``rejected``. A conversation gives one row, or one for
    each answer where the template rewrites earlier turns (leaves out their reasoning, say), so that each answer follows
    exactly the prompt of a request. ``max_length``: tokens of the longest row; ``chat_template_kwargs``: for the chat
    template, where the row has none of that name. Raises :class:`BadRow`, :class:`TooLong`, and what ``watch`` raises.
    """
    with bad_rows():
        match content:
            case PairRow():
                return (_pair(content, tokenizer, max_length, chat_template_kwargs, watch),)
            case CompletionRow():
                rows = [_completion(content, tokenizer)]
            case TextRow():
                rows = [_text(content, tokenizer)]
            case ChatRow():
                kwargs = {**(chat_template_kwargs or {}), **content.chat_template_kwargs}
                row = replace(content, chat_template_kwargs=kwargs)
                rows = list(chat_rows(row, tokenizer, max_length, watch))
    longest = max(len(ids) for ids, _ in rows)
    if max_length is not None and longest > max_length:
        raise TooLong(f"the row has {longest} tokens", max_length)
    for ids, labels in rows:
        _check(ids, labels, tokenizer)
    return tuple(TrainRow(tuple(ids), tuple(labels)) for ids, labels in rows)


def _pair(
    pair: PairRow,
    tokenizer: TextTokenizer,
    max_length: int | None,
    chat_template_kwargs: Mapping[str, Any] | None,
    watch: Watch,
) -> TrainRow:
    found = [
        train_rows(side, tokenizer, max_length=max_length, chat_template_kwargs=chat_template_kwargs, watch=watch)
        for side in (pair.chosen, pair.rejected)
    ]
    if any(len(rows) > 1 for rows in found):
        raise BadRow(["the chat template rewrites earlier answers of this conversation: give a pair for each answer"])
    (chosen,), (rejected,) = found
    if chosen == rejected:
        raise BadRow(["both answers of the pair have the same tokens"])
    if _prompt(chosen) != _prompt(rejected):
        raise BadRow(["the two answers of the pair do not follow the same prompt"])
    return replace(chosen, rejected=rejected)


def _prompt(row: TrainRow) -> tuple[int, ...]:
    return row.input_ids[: row.labels.index(True)]


def render_marked(row: TrainRow, tokenizer: TextTokenizer) -> tuple[MarkedText, ...]:
    """The text of a tokenised row, special tokens included, split where loss tokens begin and end."""
    segments: list[MarkedText] = []
    end = 0
    for trained, group in groupby(row.labels):
        start, end = end, end + len(list(group))
        # Some tokens before it, so that words and characters are joined as in the whole text.
        before = max(0, start - CONTEXT)
        known = tokenizer.decode(row.input_ids[before:start], skip_special_tokens=False)
        text = tokenizer.decode(row.input_ids[before:end], skip_special_tokens=False)
        segments.append(MarkedText(text[len(known) :], trained))
    return tuple(segments)


def _completion(row: CompletionRow, tokenizer: TextTokenizer) -> Labelled:
    prompt = tokenizer.encode(row.prompt, after=row.passages)
    answer = _ended(_without_tail(tokenizer.encode_continuation(row.completion), tokenizer), tokenizer)
    return prompt + answer, [False] * len(prompt) + [True] * len(answer)


def _text(row: TextRow, tokenizer: TextTokenizer) -> Labelled:
    ids = _ended(tokenizer.encode(row.text, field="text"), tokenizer)
    # No token comes before the first one to predict it from.
    return ids, [False] + [True] * (len(ids) - 1)


def _ended(ids: list[int], tokenizer: TextTokenizer) -> list[int]:
    """``ids`` with one end token, unless they end with one."""
    if tokenizer.eos_token_id is None:
        raise BadRow(["the base's tokenizer has no end-of-sequence token, so answers cannot be ended"])
    return ids if ids and ids[-1] in tokenizer.eos_token_ids else [*ids, tokenizer.eos_token_id]


def _without_tail(answer: list[int], tokenizer: TextTokenizer) -> list[int]:
    """An answer up to its end token, without white space and further end tokens after it."""
    end = len(answer)
    for at in range(len(answer) - 1, -1, -1):
        if answer[at] in tokenizer.eos_token_ids:
            end = at + 1
        elif not tokenizer.token_text(answer[at]).isspace():
            break
    return answer[:end]


def _check(ids: list[int], labels: list[bool], tokenizer: TextTokenizer) -> None:
    if len(ids) > 1 and ids[0] == ids[1] == tokenizer.bos_token_id:
        start, shown = tokenizer.token_text(ids[0]), tokenizer.decode(ids[:12], skip_special_tokens=False)
        raise BadRow(
            [
                f"the row begins with {start} twice ({excerpt(shown)}): the tokenizer adds it by itself, so leave it "
                "out of the text"
            ]
        )
    if not any(labels):
        shown = tokenizer.decode(ids, skip_special_tokens=False)
        raise BadRow([f"the row has no token to learn; it is rendered as {excerpt(shown)}"])
