"""Training rows as other tools write them: which format an object is in, by its fields alone.

Shared by the converter, which turns them into loramux's rows, and by the server, which names them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

QUESTIONS = ("question", "query", "instruction", "user", "human", "input", "prompt")
"""Fields that ask, the most telling first."""
ANSWERS = ("answer", "response", "output", "completion", "assistant", "reply", "target", "gpt", "bot")
"""Fields that answer."""
CONVERSATIONS = ("conversations", "conversation", "dialog", "dialogue", "chat")
NATIVE = ({"chosen", "rejected"}, {"preferred_output", "non_preferred_output"}, {"messages"}, {"prompt", "completion"})
"""Fields of loramux's own rows, but for ``text``: other tools keep what they made of a row in a field of that name."""

_TURNS = ("messages", "prompt", "completion", "chosen", "rejected")
"""Loramux's own fields that may be lists of messages."""
FIELDS = frozenset(
    (
        *(*_TURNS, "text", "tools", "input", "preferred_output", "non_preferred_output", "on_top_of"),
        *(*QUESTIONS, *ANSWERS, *CONVERSATIONS, "system", "system_prompt", "context", "history"),
    )
)
"""Every field that means something in some format."""
ROLES = {
    **dict.fromkeys(("human", "user", "prompter", "person"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "model", "bot", "bard", "bing", "claude", "ai"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("tool", "observation", "function_response", "function", "ipython"), "tool"),
    "function_call": "function_call",
    "tool_call": "function_call",
}
"""Names of roles in any tool's data, in lower case, and what they are here."""
_OWN_ROLES = ("system", "developer", "user", "assistant", "tool", "function")

OWN, SHAREGPT, ALPACA, QUESTION_ANSWER = "loramux", "ShareGPT", "Alpaca", "question and answer"
OTHER_SPELLING = "loramux in another spelling"
PREFERENCES, GEMINI, TOKENIZED, SEGMENTS = "preferences with a question", "Gemini", "tokenised rows", "Axolotl segments"
UNCONVERTIBLE = {
    TOKENIZED: "token ids belong to another tokenizer, so there is no text to train on",
    SEGMENTS: "segments have no prompt and answer; write each row as prompt and completion",
}
"""Formats that are known, and why they cannot be converted."""


def recognised(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row with its known fields in lower case, and with conversations that are kept as JSON text as lists."""
    found: dict[str, Any] = {}
    for name, value in row.items():
        known = name.strip().lower() if isinstance(name, str) else name
        name = known if known in FIELDS and known not in row and known not in found else name
        listed = name in (*_TURNS, *CONVERSATIONS, "tools") and isinstance(value, str) and value.lstrip()[:1] == "["
        found[name] = _parsed(value, turns=name in _TURNS) if listed else value
    return found


def _parsed(text: str, turns: bool) -> Any:
    """The list that a text spells; the text itself if it does not, or if it is none of turns where it has to be."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    said = (
        isinstance(value, list) and value and all(isinstance(t, dict) and ("role" in t or "from" in t) for t in value)
    )
    return value if said or not turns else text


def format_of(row: Mapping[str, Any]) -> str:
    """The format whose fields a row has, ``loramux`` for its own; empty if it is none that is known."""
    fields = {name for name, value in row.items() if value is not None}
    if any(_speaks_otherwise(row.get(name)) for name in _TURNS):
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
    if format == OTHER_SPELLING:
        return (
            "the rows are loramux's but for their spelling (fields in capitals, or messages as JSON text); turn them"
            f" into its own with: loramux datasets convert {name}"
        )
    if reason := UNCONVERTIBLE.get(format):
        return f"the rows are {format}: {reason}"
    return f"the rows are in the format {format!r}, not loramux's; turn them into its own with: " + (
        f"loramux datasets convert {name}"
    )


def _speaks_otherwise(turns: Any) -> bool:
    """Whether messages are ShareGPT's, or have roles of other tools: human, ai, User."""
    listed = turns if isinstance(turns, list) else [turns]
    return any(isinstance(turn, dict) and (_is_sharegpt(turn) or _is_foreign(turn.get("role"))) for turn in listed)


def _is_sharegpt(turn: dict[str, Any]) -> bool:
    return "from" in turn and "value" in turn and "role" not in turn


def _is_foreign(role: Any) -> bool:
    return isinstance(role, str) and role not in _OWN_ROLES and role.strip().lower() in ROLES
