"""Training rows as other tools write them: which format an object is in, by its fields alone.

Shared by the converter, which turns them into loramux's rows, and by the server, which names them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

QUESTIONS = ("question", "query", "instruction", "user", "human", "input", "prompt")
"""Fields that ask, the most telling first."""
ANSWERS = ("answer", "response", "output", "completion", "assistant", "reply", "target", "gpt", "bot")
"""Fields that answer."""
CONVERSATIONS = ("conversations", "conversation", "dialog", "dialogue", "chat")
NATIVE = ({"chosen", "rejected"}, {"preferred_output", "non_preferred_output"}, {"messages"}, {"prompt", "completion"})
"""Fields of loramux's own rows, but for ``text``: other tools keep what they made of a row in a field of that name."""

OWN, SHAREGPT, ALPACA, QUESTION_ANSWER = "loramux", "ShareGPT", "Alpaca", "question and answer"
PREFERENCES, GEMINI, TOKENIZED, SEGMENTS = "preferences with a question", "Gemini", "tokenised rows", "Axolotl segments"
UNCONVERTIBLE = {
    TOKENIZED: "token ids belong to another tokenizer, so there is no text to train on",
    SEGMENTS: "segments have no prompt and answer; write each row as prompt and completion",
}
"""Formats that are known, and why they cannot be converted."""


def format_of(row: Mapping[str, Any]) -> str:
    """The format whose fields a row has, ``loramux`` for its own; empty if it is none that is known."""
    fields = {name for name, value in row.items() if value is not None}
    if _speaks_sharegpt(row.get("messages")):
        return SHAREGPT
    spoken = any(isinstance(row.get(name), list) for name in CONVERSATIONS)
    if {"chosen", "rejected"} <= fields:
        if spoken:
            return SHAREGPT
        asked = "prompt" not in fields and fields & {"instruction", "question", "query", "input"}
        return PREFERENCES if asked and not isinstance(row["chosen"], list) else OWN
    if any(own <= fields for own in NATIVE):
        return OWN
    if spoken:
        return SHAREGPT
    if "instruction" in fields and fields & {"output", "response", "completion", "answer"}:
        return ALPACA
    if question_and_answer(fields):
        return QUESTION_ANSWER
    if isinstance(row.get("contents"), list):
        return GEMINI
    if "input_ids" in fields:
        return TOKENIZED
    if isinstance(row.get("segments"), list):
        return SEGMENTS
    return OWN if "text" in fields else ""


def question_and_answer(fields: set[str]) -> tuple[str, str] | None:
    """The field that asks and the one that answers; None if there are no two such fields."""
    question = next((name for name in QUESTIONS if name in fields), "")
    answer = next((name for name in ANSWERS if name in fields and name != question), "")
    return (question, answer) if question and answer else None


def told(format: str, name: str = "FILE") -> str:
    """One sentence for a file that is in another format: what it is, and what to do."""
    if reason := UNCONVERTIBLE.get(format):
        return f"the rows are {format}: {reason}"
    return f"the rows are in the format {format!r}, not loramux's; turn them into its own with: " + (
        f"loramux datasets convert {name}"
    )


def _speaks_sharegpt(turns: Any) -> bool:
    first = turns[0] if isinstance(turns, list) and turns else None
    return isinstance(first, dict) and "from" in first and "value" in first and "role" not in first
