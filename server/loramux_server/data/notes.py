"""Notes on the good rows of a dataset: what may be a mistake; and whether a request asks with messages or a prompt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..core.notes import Note
from ..text.tokenizer import TextTokenizer
from .fields import ChatRow, CompletionRow, TextRow
from .preference_pairs import PairRow
from .rows import Content, DataRow

FEW = 10
"""Fewer rows than this rarely teach an adapter anything."""
MAX_NAMES = 10
"""Most fields that a note lists."""


@dataclass(frozen=True, slots=True)
class PlainRows:
    """Rows that are trained on as plain text, without the chat template."""

    count: int
    line: int
    """The first of them."""
    kind: str
    """Shape of the first: ``prompt + completion``, ``text``, or ``preference pairs of texts``."""
    prompt: str = ""
    """Prompt of the first; empty for ``text``."""


def notes_on(
    rows: Sequence[DataRow],
    duplicates: int,
    unanswered: Sequence[int],
    endless: Sequence[int],
    tokenizer: TextTokenizer,
) -> Iterator[Note]:
    """Notes on at least one good row.

    ``unanswered`` are the lines without an answer, ``endless`` those whose answers have no end token.
    """
    count = len(rows)
    if count < FEW:
        text = f"the data has only {count} row{'s' * (count != 1)}: an adapter rarely learns from fewer than {FEW}"
        yield Note("FEW_ROWS", text, count)
    if duplicates:
        text = f"{duplicates} row{'s repeat' if duplicates > 1 else ' repeats'} an earlier one"
        yield Note("REPEATED_ROWS", text, duplicates)
    yield from _unused_fields(rows)
    unused = [row for row in rows if isinstance(row.content, ChatRow) and _goes_on(row.content.trained)]
    if unused:
        yield Note(
            "END_NOT_LEARNED",
            f"{len(unused)} conversation{'s do' if len(unused) > 1 else ' does'} not end with an assistant turn that "
            f"is trained on (line {unused[0].line} first): what follows the last such turn is not used",
            len(unused),
            unused[0].line,
        )
    if unanswered:
        yield Note(
            "UNANSWERED_ROWS",
            f"{len(unanswered)} row{'s have' if len(unanswered) > 1 else ' has'} no answer (line {unanswered[0]} "
            "first): the teacher answers before training begins, or with on_policy the student while it trains",
            len(unanswered),
            unanswered[0],
        )
    if endless:
        yield Note(
            "NO_END_TOKEN",
            f"the chat template ends answers without an end-of-sequence token (line {endless[0]} first): "
            "the adapter does not learn to stop",
            len(endless),
            endless[0],
        )


def asked_with(rows: Sequence[DataRow]) -> str:
    """How a request asks for what most rows train: ``messages``, or a plain ``prompt``; empty without rows."""
    if not rows:
        return ""
    return "prompt" if 2 * sum(map(_is_plain, rows)) > len(rows) else "messages"


def plain_rows(rows: Sequence[DataRow]) -> PlainRows | None:
    """The rows that are trained on as plain text; None if there are none."""
    plain = [row for row in rows if _is_plain(row)]
    if not plain:
        return None
    match plain[0].content:
        case TextRow():
            kind, prompt = "text", ""
        case PairRow(chosen=CompletionRow(prompt=prompt)):
            kind = "preference pairs of texts"
        case CompletionRow(prompt=prompt):
            kind = "prompt + completion"
        case _:
            raise AssertionError("a conversation is not plain")
    return PlainRows(len(plain), plain[0].line, kind, prompt)


def _goes_on(trained: Sequence[bool]) -> bool:
    """Whether turns follow the last one that is trained on."""
    return any(trained) and not trained[-1]


def _is_plain(row: DataRow) -> bool:
    content: Content = row.content.chosen if isinstance(row.content, PairRow) else row.content
    return not isinstance(content, ChatRow)


def _unused_fields(rows: Sequence[DataRow]) -> Iterator[Note]:
    counts = Counter(name for row in rows for name in row.ignored)
    if not counts:
        return
    names = ", ".join(f"{name[:40]} ({count} row{'s' * (count != 1)})" for name, count in counts.most_common(MAX_NAMES))
    more = f" and {len(counts) - MAX_NAMES} more" if len(counts) > MAX_NAMES else ""
    first = next(row for row in rows if row.ignored)
    touched = sum(bool(row.ignored) for row in rows)
    yield Note("UNUSED_FIELDS", f"fields that are not used: {names}{more}", touched, first.line)
