"""Preference pairs: two answers to one prompt, in the fields of TRL or of OpenAI."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .fields import Answered, TemplateInputs, answered, chat, is_text, template_inputs_of

CHOSEN_AND_REJECTED = {"prompt", "chosen", "rejected"}
PREFERRED_OUTPUTS = {"input", "preferred_output", "non_preferred_output"}


@dataclass(frozen=True, slots=True)
class PairRow:
    """A preferred (``chosen``) and a ``rejected`` answer to the same prompt."""

    chosen: Answered
    rejected: Answered


def chosen_and_rejected(value: Mapping[str, Any], problems: list[str]) -> PairRow | None:
    """TRL's pair, of texts or of messages; without ``prompt``, both answers begin with it."""
    if not _both(value, "chosen", "rejected", problems):
        return None
    prompt, chosen, rejected = _prompt_and_answers(
        value.get("prompt"), _turns(value["chosen"]), _turns(value["rejected"])
    )
    if prompt is None:
        if type(chosen) is not type(rejected):
            problems.append("chosen and rejected must both be strings or both be lists of messages")
            return None
        if isinstance(chosen, list):
            return _whole(chosen, rejected, template_inputs_of(value, problems), problems)
        if not all([is_text(chosen, "chosen", problems), is_text(rejected, "rejected", problems)]):
            return None
        if chosen == rejected:
            problems.append("chosen and rejected are the same answer")
            return None
        prompt = _common_beginning(chosen, rejected)
        if not prompt.strip():
            problems.append("chosen and rejected begin with different words, so there is no prompt; give prompt")
            return None
        chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
    return _pair(prompt, chosen, rejected, ("chosen", "rejected"), template_inputs_of(value, problems), problems)


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
    inputs = template_inputs_of({**shared, **asked}, problems)
    return _pair(asked["messages"], value[names[0]], value[names[1]], names, inputs, problems)


def _pair(
    prompt: Any, chosen: Any, rejected: Any, names: tuple[str, str], inputs: TemplateInputs, problems: list[str]
) -> PairRow | None:
    if chosen == rejected:
        problems.append(f"{names[0]} and {names[1]} are the same answer")
        return None
    first, second = (
        answered(prompt, answer, name, inputs, problems) for answer, name in zip((chosen, rejected), names, strict=True)
    )
    return PairRow(first, second) if first and second else None


def _whole(chosen: list[Any], rejected: list[Any], inputs: TemplateInputs, problems: list[str]) -> PairRow | None:
    """A pair of whole conversations: the prompt ends where they differ."""
    same = [a == b for a, b in zip(_contents(chosen), _contents(rejected), strict=False)]
    shared = same.index(False) if False in same else len(same)
    if shared == len(chosen) == len(rejected):
        problems.append("chosen and rejected are the same answer")
        return None
    roles = [m.get("role") for turns in (chosen, rejected) for m in turns[shared : shared + 1] if isinstance(m, dict)]
    if roles != ["assistant"] * 2 or not shared:
        problems.append(
            f"chosen and rejected differ from message {shared} on, which must be an assistant turn in both: "
            "the prompt before it has to be the same"
        )
        return None
    first, second = (
        chat(turns, name, inputs, problems, shared, name)
        for turns, name in ((chosen, "chosen"), (rejected, "rejected"))
    )
    return PairRow(first, second) if first and second else None


def _both(value: Mapping[str, Any], chosen: str, rejected: str, problems: list[str]) -> bool:
    if missing := [name for name in (chosen, rejected) if name not in value]:
        problems.append(f"the row has no {missing[0]}; {chosen} and {rejected} go together")
    return not missing


def _turns(answer: Any) -> Any:
    """A single message is a list of one."""
    return [answer] if isinstance(answer, dict) else answer


def _prompt_and_answers(prompt: Any, chosen: Any, rejected: Any) -> tuple[Any, Any, Any]:
    """The prompt and the answers after it; prompt None: both answers begin with it.

    Common datasets have the whole conversation, or the whole text, in both answers and repeat the prompt beside them.
    """
    if all(isinstance(answer, list) for answer in (chosen, rejected)):
        whole = _contents(chosen[:1]) == _contents(rejected[:1]) and _role(chosen) not in (None, "assistant")
        if isinstance(prompt, str):
            return (None if whole else [{"role": "user", "content": prompt}]), chosen, rejected
        if (
            whole
            and isinstance(prompt, list)
            and all(turn in _contents(side) for side in (chosen, rejected) for turn in _contents(prompt))
        ):
            return None, chosen, rejected
    if all(isinstance(answer, str) for answer in (chosen, rejected)):
        if isinstance(prompt, list):
            chosen, rejected = ([{"role": "assistant", "content": answer}] for answer in (chosen, rejected))
        elif isinstance(prompt, str) and prompt and chosen.startswith(prompt) and rejected.startswith(prompt):
            chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
    return prompt, chosen, rejected


def _contents(turns: list[Any]) -> list[Any]:
    """What messages say: many tools add an index or a time to each, which is left out."""
    return [
        (turn.get("role"), turn.get("content"), turn.get("tool_calls")) if isinstance(turn, dict) else turn
        for turn in turns
    ]


def _role(turns: list[Any]) -> Any:
    return turns[0].get("role") if turns and isinstance(turns[0], dict) else None


def _common_beginning(a: str, b: str) -> str:
    """The common beginning of two texts, in whole words; the space after it goes to the answers."""
    shared = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    return a[: max(a.rfind(" ", 0, shared), 0)]
