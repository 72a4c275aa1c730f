"""Rows of loramux in the other shape: plain prompts as conversations, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .other_tools import LeftOut


def as_messages(row: dict[str, Any]) -> dict[str, Any]:
    """A row as a conversation; one that is none already comes back itself. Raises :class:`LeftOut`."""
    if "text" in row:
        raise LeftOut("is a text, which has no question and answer")
    rest = {name: value for name, value in row.items() if name not in ("prompt", "completion", "chosen", "rejected")}
    if isinstance(row.get("prompt"), str) and not isinstance(row.get("chosen"), list | dict):
        asked = {"role": "user", "content": row["prompt"].strip()}
        if not asked["content"]:
            raise LeftOut("has an empty prompt")
        if "completion" in row:
            return {"messages": [asked, _answer(row["completion"])], **rest}
        return {"prompt": [asked], "chosen": [_answer(row["chosen"])], "rejected": [_answer(row["rejected"])], **rest}
    if isinstance(row.get("prompt"), list) and isinstance(row.get("completion"), list):
        return {"messages": [*map(_unlearned, row["prompt"]), *row["completion"]], **rest}
    if isinstance(row.get("chosen"), str) and "prompt" not in row:
        raise LeftOut("is a pair of texts without a prompt")
    return row


def _unlearned(turn: Any) -> Any:
    """A turn of a prompt, whose answers are not what is learned."""
    return {**turn, "weight": 0} if isinstance(turn, Mapping) and turn.get("role") == "assistant" else turn


def _answer(text: Any) -> dict[str, Any]:
    if not isinstance(text, str):
        raise LeftOut("has a prompt that is a text and an answer that is none")
    if not text.strip():
        raise LeftOut("has an empty answer")
    return {"role": "assistant", "content": text.strip()}


def as_prompt(row: dict[str, Any]) -> dict[str, Any]:
    """A row as a plain prompt; one that is plain already comes back itself. Raises :class:`LeftOut`."""
    if "messages" not in row:
        if (
            not all(isinstance(row.get(name, ""), str) for name in ("prompt", "completion", "chosen", "rejected"))
            or "preferred_output" in row
        ):
            raise LeftOut("has prompt and answer as messages, not as texts")
        return row
    turns = row["messages"]
    roles = [turn.get("role") if isinstance(turn, Mapping) else None for turn in turns]
    if roles != ["user", "assistant"] or not all(isinstance(turn.get("content"), str) for turn in turns):
        raise LeftOut("is a conversation of more than one question and answer, which has no plain prompt")
    rest = {name: value for name, value in row.items() if name not in ("messages", "tools")}
    return {"prompt": turns[0]["content"], "completion": " " + turns[1]["content"].lstrip(), **rest}
