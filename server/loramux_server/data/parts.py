"""The parts of dataset rows: conversations and texts, checked, in OpenAI's and TRL's words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..core.json_values import BadJson, decode, too_deep
from ..text.tokenizer import ROLES, is_role


@dataclass(frozen=True, slots=True)
class ChatRow:
    """A conversation. ``trained[i]`` says whether message i is learned (only assistant turns can be)."""

    messages: tuple[Mapping[str, Any], ...]
    trained: tuple[bool, ...]
    tools: tuple[Mapping[str, Any], ...] | None = None


@dataclass(frozen=True, slots=True)
class CompletionRow:
    """A plain prompt and what should follow it."""

    prompt: str
    completion: str


@dataclass(frozen=True, slots=True)
class TextRow:
    """Raw text, all of it learned."""

    text: str


Answered = ChatRow | CompletionRow
"""What has a prompt and an answer."""


class BadRow(Exception):
    """A row that cannot be used: all that is wrong with it, one sentence each."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


class TooLong(BadRow):
    """A row that is longer than is allowed: it is refused, never cut."""

    def __init__(self, what: str, max_length: int) -> None:
        super().__init__([f"{what}; at most {max_length} are allowed: shorten or split it"])


def chat(
    value: Any, name: str, tools: Any, problems: list[str], learn_from: int = 0, answer: str = ""
) -> ChatRow | None:
    """A conversation from a list of messages; turns before number ``learn_from`` are never learned.

    ``name`` is what the row calls the list, ``answer`` what it calls the part that is learned.
    """
    if not isinstance(value, list) or not value:
        problems.append(f"{name} must be a list with at least one message")
        return None
    before = len(problems)
    turns = [_message(message, f"{name}[{index}]", problems) for index, message in enumerate(value)]
    if len(problems) > before:
        return None
    messages = tuple(message for message, _ in turns)
    trained = tuple(learn and index >= learn_from for index, (_, learn) in enumerate(turns))
    if not any(message["role"] == "assistant" for message in messages[learn_from:]):
        problems.append(f"no assistant turn in {answer or name}, so there is nothing to learn")
    elif not any(trained):
        problems.append("every assistant turn has weight 0, so there is nothing to learn")
    elif trained[0]:
        problems.append(
            f"{name}[0] is an assistant turn that answers nothing; begin with a user turn or give it weight 0"
        )
    return ChatRow(messages, trained, tools) if len(problems) == before else None


def answered(prompt: Any, answer: Any, name: str, tools: Any, problems: list[str]) -> Answered | None:
    """A prompt and the answer that the row calls ``name``: both texts, or both messages as TRL has them."""
    if isinstance(prompt, list) and isinstance(answer, list):
        if not answer:
            problems.append(f"{name} is empty")
            return None
        return chat([*prompt, *answer], f"prompt + {name}", tools, problems, len(prompt), name)
    if isinstance(prompt, list) or isinstance(answer, list):
        problems.append(f"prompt and {name} must both be strings or both be lists of messages")
        return None
    if all([is_text(prompt, "prompt", problems), is_text(answer, name, problems)]):
        return CompletionRow(prompt, answer)
    return None


def _message(value: Any, path: str, problems: list[str]) -> tuple[dict[str, Any], bool]:
    """A message as the template gets it, and whether it is learned."""
    if not isinstance(value, dict):
        problems.append(f"{path} is not an object with role and content")
        return {}, False
    role = value.get("role")
    if not is_role(role):
        said = "has no role" if role is None else f"has role {str(role)[:40]!r}"
        problems.append(f"{path} {said}; roles are {', '.join(sorted(ROLES))}")
    message = {key: item for key, item in value.items() if key != "weight" and item is not None}
    weight = value.get("weight")
    if weight is not None and (isinstance(weight, bool) or weight not in (0, 1)):
        problems.append(f"{path}.weight is {str(weight)[:40]}; it must be 0 or 1")
    calls = message.get("tool_calls")
    if calls is not None:
        message["tool_calls"] = _tool_calls(calls, f"{path}.tool_calls", problems)
    content = message.get("content")
    if isinstance(content, list):
        message["content"] = _joined(content, f"{path}.content", problems)
    elif content is None and "content" not in value and not calls:
        problems.append(f"{path} has no content")
    elif not isinstance(content, str | None):
        problems.append(f"{path}.content must be a string")
    elif not (content or "").strip() and not (calls and role == "assistant") and role != "tool":
        problems.append(f"{path}.content is empty")
    message.setdefault("content", "")
    return message, role == "assistant" and weight != 0


def _joined(parts: list[Any], path: str, problems: list[str]) -> str:
    """Text of a content list in OpenAI's form; a base model here reads text only."""
    texts = [part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str)]
    if len(texts) != len(parts):
        problems.append(f"{path} has parts that are not text; only text can be trained on")
    elif not "".join(texts).strip():
        problems.append(f"{path} is empty")
    return "".join(texts)


def _tool_calls(calls: Any, path: str, problems: list[str]) -> list[Any]:
    """Tool calls with their arguments as objects: OpenAI writes them as JSON in a string, templates expect objects."""
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        problems.append(f"{path} must be a list of objects")
        return []
    result = []
    for index, call in enumerate(calls):
        function = call.get("function")
        if function is not None and not isinstance(function, dict):
            problems.append(f"{path}[{index}].function must be an object with name and arguments")
            continue
        where = f"{path}[{index}]" + ("" if function is None else ".function")
        function = call if function is None else function
        if not isinstance(function.get("name", ""), str):
            problems.append(f"{where}.name must be a string")
        if function is not call and isinstance(function.get("arguments"), str):
            arguments_of = f"{path}: arguments of {str(function.get('name'))[:40]!r}"
            try:
                call = {**call, "function": {**function, "arguments": decode(function["arguments"])}}
            except BadJson:
                problems.append(f"{arguments_of} are not JSON")
            if too_deep(call["function"]["arguments"]):
                problems.append(f"{arguments_of} are nested too deeply")
        result.append(call)
    return result


def tools_of(value: Mapping[str, Any], problems: list[str]) -> tuple[Mapping[str, Any], ...] | None:
    """The tools that a row offers; an empty list is none."""
    if "functions" in value:
        problems.append('"functions" is the old spelling; use "tools"')
    tools = value.get("tools")
    if tools is None:
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        problems.append("tools must be a list of objects")
        return None
    return tuple(tools) or None


def is_text(text: Any, name: str, problems: list[str]) -> bool:
    """Whether a field holds a text that says something; what is wrong goes to ``problems``."""
    if not isinstance(text, str):
        problems.append(f"{name} must be a string")
    elif not text.strip():
        problems.append(f"{name} is empty" + ("; use text for rows without a prompt" if name == "prompt" else ""))
    else:
        return True
    return False
