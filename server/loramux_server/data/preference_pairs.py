"""Preference pairs: two answers to one prompt, in TRL's words and in OpenAI's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .fields import Answered, Given, answered, chat, given_of, is_text

CHOSEN_AND_REJECTED = {"prompt", "chosen", "rejected"}
PREFERRED_OUTPUTS = {"input", "preferred_output", "non_preferred_output"}


@dataclass(frozen=True, slots=True)
class PairRow:
    """Two answers to the same prompt, the one that is preferred first."""

    chosen: Answered
    rejected: Answered


def chosen_and_rejected(value: Mapping[str, Any], problems: list[str]) -> PairRow | None:
    """TRL's pair, of texts or of messages; without ``prompt`` it is what both answers begin with."""
    if not _both(value, "chosen", "rejected", problems):
        return None
    prompt, chosen, rejected = _settled(value.get("prompt"), _turns(value["chosen"]), _turns(value["rejected"]))
    if prompt is None:
        if type(chosen) is not type(rejected):
            problems.append("chosen and rejected must both be strings or both be lists of messages")
            return None
        if isinstance(chosen, list):
            return _whole(chosen, rejected, given_of(value, problems), problems)
        if not all([is_text(chosen, "chosen", problems), is_text(rejected, "rejected", problems)]):
            return None
        if chosen == rejected:
            problems.append("chosen and rejected are the same")
            return None
        prompt = _beginning(chosen, rejected)
        if not prompt.strip():
            problems.append("chosen and rejected begin with different words, so there is no prompt; give prompt")
            return None
        chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
    return _pair(prompt, chosen, rejected, ("chosen", "rejected"), given_of(value, problems), problems)


def preferred_outputs(value: Mapping[str, Any], problems: list[str]) -> PairRow | None:
    """OpenAI's pair."""
    names = ("preferred_output", "non_preferred_output")
    if not _both(value, *names, problems):
        return None
    asked = value.get("input")
    if not isinstance(asked, dict) or not isinstance(asked.get("messages"), list) or not asked["messages"]:
        problems.append('input must be an object with "messages", the conversation that both outputs answer')
        return None
    if not all(isinstance(value[name], list) for name in names):
        problems.append(f"{names[0]} and {names[1]} must be lists of messages")
        return None
    shared = {name: value.get(name) for name in ("tools", "chat_template_kwargs")}
    given = given_of({**shared, **asked}, problems)
    return _pair(asked["messages"], value[names[0]], value[names[1]], names, given, problems)


def _pair(
    prompt: Any, chosen: Any, rejected: Any, names: tuple[str, str], given: Given, problems: list[str]
) -> PairRow | None:
    if chosen == rejected:
        problems.append(f"{names[0]} and {names[1]} are the same")
        return None
    first, second = (
        answered(prompt, answer, name, given, problems) for answer, name in zip((chosen, rejected), names, strict=True)
    )
    return PairRow(first, second) if first and second else None


def _whole(chosen: list[Any], rejected: list[Any], given: Given, problems: list[str]) -> PairRow | None:
    """A pair of whole conversations: the prompt ends where they part."""
    same = [a == b for a, b in zip(_said(chosen), _said(rejected), strict=False)]
    shared = same.index(False) if False in same else len(same)
    if shared == len(chosen) == len(rejected):
        problems.append("chosen and rejected are the same")
        return None
    roles = [m.get("role") for turns in (chosen, rejected) for m in turns[shared : shared + 1] if isinstance(m, dict)]
    if roles != ["assistant"] * 2 or not shared:
        problems.append(
            f"chosen and rejected part at message {shared}, which must be an assistant turn in both: "
            "the prompt before it has to be the same"
        )
        return None
    first, second = (
        chat(turns, name, given, problems, shared, name) for turns, name in ((chosen, "chosen"), (rejected, "rejected"))
    )
    return PairRow(first, second) if first and second else None


def _both(value: Mapping[str, Any], chosen: str, rejected: str, problems: list[str]) -> bool:
    if missing := [name for name in (chosen, rejected) if name not in value]:
        problems.append(f"has no {missing[0]}; {chosen} and {rejected} go together")
    return not missing


def _turns(answer: Any) -> Any:
    """A single message is a list of one."""
    return [answer] if isinstance(answer, dict) else answer


def _settled(prompt: Any, chosen: Any, rejected: Any) -> tuple[Any, Any, Any]:
    """The prompt and the answers after it; prompt None: it is what the answers begin with.

    Common spellings have whole conversations, or whole texts, and tell the prompt beside them once more.
    """
    if all(isinstance(answer, list) for answer in (chosen, rejected)):
        whole = _said(chosen[:1]) == _said(rejected[:1]) and _role(chosen) not in (None, "assistant")
        if isinstance(prompt, str):
            return (None if whole else [{"role": "user", "content": prompt}]), chosen, rejected
        if (
            whole
            and isinstance(prompt, list)
            and all(turn in _said(side) for side in (chosen, rejected) for turn in _said(prompt))
        ):
            return None, chosen, rejected
    if all(isinstance(answer, str) for answer in (chosen, rejected)):
        if isinstance(prompt, list):
            chosen, rejected = ([{"role": "assistant", "content": answer}] for answer in (chosen, rejected))
        elif isinstance(prompt, str) and prompt and chosen.startswith(prompt) and rejected.startswith(prompt):
            chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
    return prompt, chosen, rejected


def _said(turns: list[Any]) -> list[Any]:
    """Roles and contents of messages: many tools put a number or a time beside them, which say nothing here."""
    return [
        (turn.get("role"), turn.get("content"), turn.get("tool_calls")) if isinstance(turn, dict) else turn
        for turn in turns
    ]


def _role(turns: list[Any]) -> Any:
    return turns[0].get("role") if turns and isinstance(turns[0], dict) else None


def _beginning(a: str, b: str) -> str:
    """What two texts begin with, in whole words; the space goes to the answers."""
    shared = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    return a[: max(a.rfind(" ", 0, shared), 0)]
