"""One row of another tool as rows of loramux. Pure functions; what cannot be turned raises :class:`LeftOut`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..formats import (
    ALPACA,
    CONVERSATIONS,
    GEMINI,
    OWN,
    PREFERENCES,
    QUESTION_ANSWER,
    ROLES,
    SHAREGPT,
    question_and_answer,
)

Turn = dict[str, Any]

_SYSTEM = ("system", "system_prompt")


class LeftOut(Exception):
    """A row that is not converted, with the reason, the same for all rows that it holds for."""


@dataclass(slots=True)
class Made:
    """A row of loramux, with the fields of the other row that went into it, and what was changed on the way."""

    row: dict[str, Any]
    used: set[str]
    changes: list[str] = field(default_factory=list)


def made_of(format: str, row: Mapping[str, Any]) -> Made:
    """A row of ``format`` as a row of loramux. Raises :class:`LeftOut`."""
    made = _MAKERS[format]({name: value for name, value in row.items() if value is not None})
    for good, bad in (("chosen", "rejected"), ("preferred_output", "non_preferred_output")):
        if good in made.row and made.row[good] == made.row[bad]:
            raise LeftOut("has two answers that are the same")
    for name in ("on_top_of", "expect", "expect_match", "context"):  # loramux's own, and nobody else's
        if name in row and format == OWN:
            made.row[name] = row[name]
            made.used.add(name)
    return made


def _own(row: Mapping[str, Any]) -> Made:
    for fields in (
        ("prompt", "chosen", "rejected", "tools"),
        ("input", "preferred_output", "non_preferred_output", "tools"),
        ("messages", "tools"),
        ("prompt", "completion", "tools"),
        ("text",),
    ):
        needed = [name for name in fields if name != "tools" and (name != "prompt" or "completion" in fields)]
        if all(name in row for name in needed):
            _check_own(row, needed)
            return Made({name: row[name] for name in fields if name in row}, set(fields))
    raise LeftOut("has none of loramux's shapes")


def _check_own(row: Mapping[str, Any], needed: list[str]) -> None:
    """Leave out what is no row, whatever its fields; the server tells everything else by line."""
    for name in needed:
        value = row[name]
        if isinstance(value, list):
            if not value or not all(isinstance(turn, Mapping) for turn in value):
                raise LeftOut(f"{name} is no list of messages")
        elif name == "messages" or not (isinstance(value, Mapping) or (isinstance(value, str) and value.strip())):
            raise LeftOut(f"{name} is empty, or neither a text nor messages")


def _sharegpt(row: Mapping[str, Any]) -> Made:
    listed = CONVERSATIONS if {"prompt", "chosen"} <= row.keys() else (*CONVERSATIONS, "messages")
    name = next((n for n in listed if isinstance(row.get(n), list)), None)
    if name is None:  # its words in loramux's own fields
        return _own({field: _spoken(field, value) for field, value in row.items()})
    changes: list[str] = []
    turns = [*_system(row), *_turns(row[name])]
    used = {name, "tools", *_SYSTEM}
    found: dict[str, Any] = {}
    if "chosen" in row and "rejected" in row:
        found = {"prompt": turns}
        for answer in ("chosen", "rejected"):
            found[answer] = _turns(row[answer]) if isinstance(row[answer], list) else [_single(row[answer])]
        used |= {"chosen", "rejected"}
    else:
        found = {"messages": _answered(turns, changes)}
    if tools := _tools(row.get("tools")):
        found["tools"] = tools
    return Made(found, used, changes)


def _spoken(field: str, value: Any) -> Any:
    if field not in ("prompt", "completion", "chosen", "rejected") or not isinstance(value, list | Mapping):
        return value
    return _turns(value if isinstance(value, list) else [value])


def _alpaca(row: Mapping[str, Any]) -> Made:
    answer = next(name for name in ("output", "response", "completion", "answer") if name in row)
    turns = [*_system(row), *_history(row.get("history")), _turn("user", _asked(row)), _turn("assistant", row[answer])]
    return Made({"messages": _checked(turns)}, {"instruction", "input", "context", "history", answer, *_SYSTEM})


def _question_answer(row: Mapping[str, Any]) -> Made:
    names = question_and_answer(set(row))
    assert names is not None
    question, answer = names
    asked = _about(row[question], row.get("context"))
    turns = [*_system(row), _turn("user", asked), _turn("assistant", row[answer])]
    return Made({"messages": _checked(turns)}, {question, answer, "context", *_SYSTEM})


def _preferences(row: Mapping[str, Any]) -> Made:
    question = next(name for name in ("instruction", "question", "query", "input") if name in row)
    asked = _asked(row) if question == "instruction" else row[question]
    sides = {name: [_single(row[name])] for name in ("chosen", "rejected")}
    prompt = _checked([*_system(row), *_history(row.get("history")), _turn("user", asked)])
    used = {question, "history", "chosen", "rejected", *_SYSTEM}
    return Made({"prompt": prompt, **sides}, used | ({"input", "context"} if question == "instruction" else set()))


def _gemini(row: Mapping[str, Any]) -> Made:
    def said(content: Any) -> str:
        parts = content.get("parts") if isinstance(content, Mapping) else None
        texts: list[Any] = [p.get("text") for p in parts if isinstance(p, Mapping)] if isinstance(parts, list) else []
        if not texts or not all(isinstance(text, str) for text in texts):
            raise LeftOut("has parts that are not text")
        return "".join(texts)

    instruction = row.get("systemInstruction") or row.get("system_instruction")
    turns = [_turn("system", said(instruction))] if instruction else []
    changes: list[str] = []
    for content in row["contents"]:
        role = str(content.get("role", "user")) if isinstance(content, Mapping) else ""
        turns.append(_turn(_role(role), said(content)))
    used = {"contents", "systemInstruction", "system_instruction"}
    return Made({"messages": _answered(_checked(turns), changes)}, used, changes)


_MAKERS: dict[str, Callable[[Mapping[str, Any]], Made]] = {
    OWN: _own,
    SHAREGPT: _sharegpt,
    ALPACA: _alpaca,
    QUESTION_ANSWER: _question_answer,
    PREFERENCES: _preferences,
    GEMINI: _gemini,
}


def _turns(said: list[Any]) -> list[Turn]:
    """Turns from ``from`` and ``value``, or ``role`` and ``content``."""
    turns = []
    for item in said:
        if not isinstance(item, Mapping):
            raise LeftOut("has a turn that is no object")
        role = _role(str(item.get("from", item.get("role", ""))))
        content = item.get("value", item.get("content"))
        turn = _call(content) if role == "function_call" else _turn(role, content, calls=item.get("tool_calls"))
        if role == "assistant" and _not_learned(item):
            turn["weight"] = 0
        if role == "tool" and isinstance(item.get("tool_call_id"), str):
            turn["tool_call_id"] = item["tool_call_id"]
        turns.append(turn)
    return _checked(turns)


def _not_learned(item: Mapping[str, Any]) -> bool:
    """OpenAI's and ShareGPT's ``weight``, Axolotl's ``train`` and ``training``."""
    return any(name in item and item[name] in (False, 0) for name in ("weight", "train", "training"))


def _role(name: str) -> str:
    role = ROLES.get(name.strip().lower())
    if role is None:
        raise LeftOut(f"has a turn of the unknown role {name[:40]!r}")
    return role


def _turn(role: str, content: Any, calls: Any = None) -> Turn:
    turn: Turn = {"role": role, "content": content if content is not None or not calls else ""}
    return {**turn, "tool_calls": calls} if calls else turn


def _call(content: Any) -> Turn:
    """An assistant's call, from a JSON object (or a list of them) with name and arguments."""
    try:
        found = json.loads(content) if isinstance(content, str) else content
    except (ValueError, RecursionError):
        raise LeftOut("has a function call that is not JSON") from None
    calls = found if isinstance(found, list) else [found]
    if not calls or not all(isinstance(call, Mapping) and isinstance(call.get("name"), str) for call in calls):
        raise LeftOut("has a function call without a name")
    made = [
        {"type": "function", "function": {"name": call["name"], "arguments": call.get("arguments", {})}}
        for call in calls
    ]
    return {"role": "assistant", "content": "", "tool_calls": made}


def _tools(found: Any) -> list[Any]:
    if isinstance(found, str):
        try:
            found = json.loads(found or "[]")
        except (ValueError, RecursionError):
            raise LeftOut("has tools that are not JSON") from None
    if not found:
        return []
    if not isinstance(found, list) or not all(isinstance(tool, Mapping) for tool in found):
        raise LeftOut("has tools that are not a list of objects")
    return [tool if "function" in tool else {"type": "function", "function": tool} for tool in found]


def _single(answer: Any) -> Turn:
    """One answer of a pair: a text, or a turn."""
    if isinstance(answer, Mapping):
        (turn,) = _turns([answer])
        return turn
    (turn,) = _checked([_turn("assistant", answer)])
    return turn


def _asked(row: Mapping[str, Any]) -> Any:
    """Alpaca's instruction with what it is about, an empty line between."""
    return _about(row["instruction"], row.get("input") or row.get("context"))


def _about(asked: Any, text: Any) -> Any:
    return f"{asked}\n\n{text}" if isinstance(asked, str) and isinstance(text, str) and text.strip() else asked


def _system(row: Mapping[str, Any]) -> list[Turn]:
    said = next((row[name] for name in _SYSTEM if row.get(name)), None)
    return [_turn("system", said)] if isinstance(said, str) and said.strip() else []


def _history(found: Any) -> list[Turn]:
    """Earlier questions and answers in pairs."""
    turns = []
    for pair in found if isinstance(found, list) else ():
        if not isinstance(pair, list) or len(pair) != 2:
            raise LeftOut("has a history that is not made of pairs")
        turns += [_turn("user", pair[0]), _turn("assistant", pair[1])]
    return turns


def _checked(turns: list[Turn]) -> list[Turn]:
    for turn in turns:
        content = turn["content"]
        if turn.get("tool_calls") or turn["role"] == "tool":
            continue
        if not isinstance(content, str | list) or not (content.strip() if isinstance(content, str) else content):
            raise LeftOut(f"has an empty {turn['role']} turn")
    return turns


def _answered(turns: list[Turn], changes: list[str]) -> list[Turn]:
    """A conversation from its first question to its last answer."""
    first = next((i for i, turn in enumerate(turns) if turn["role"] not in ("system", "assistant")), len(turns))
    opening = [turn for turn in turns[:first] if turn["role"] == "system"]
    last = max((i for i, turn in enumerate(turns) if turn["role"] == "assistant"), default=-1)
    if last < first:
        raise LeftOut("has no answer after a question")
    if len(opening) < first:
        changes.append("answers before the first question left out")
    if last < len(turns) - 1:
        changes.append("turns after the last answer left out")
    return [*opening, *turns[first : last + 1]]
