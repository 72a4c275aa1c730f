"""How an adapter has to be asked: it answers what it was taught only in the way that its rows were written."""

from __future__ import annotations

import shlex

from ...core.notes import Note
from ...data.dataset import DatasetSummary
from ...text import TextTokenizer

MAX_EXAMPLE = 80
"""Longest prompt, in characters, that is shown in an example of a command."""


def how_to_ask(report: DatasetSummary, text: TextTokenizer, name: str = "NAME") -> tuple[Note, ...]:
    """A note with the command that asks adapter ``name``, where rows are learned as plain text and need not be."""
    plain = report.plain
    if plain is None or text.chat_template is None:
        return ()
    prompt = plain.prompt
    shown = shlex.quote(prompt) if 0 < len(prompt) <= MAX_EXAMPLE and prompt.isprintable() else '"..."'
    words = "the beginning of such a text" if plain.kind == "text" else "a prompt as the rows have it"
    chat = "" if plain.kind == "text" else "; to teach answers in a chat, give --as messages"
    note = Note(
        "PLAIN_PROMPTS",
        f"{plain.count} row{'s' * (plain.count != 1)} of {plain.kind} (line {plain.line} first) "
        f"{'are' if plain.count != 1 else 'is'} learned as plain text, without the chat template: ask with {words}, "
        f"as in: loramux generate {shown} -a {name} (not with -m, nor in a chat){chat}",
        plain.count,
        plain.line,
    )
    return (note,)
