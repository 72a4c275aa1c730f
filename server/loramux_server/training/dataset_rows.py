"""The shapes of a dataset row, in OpenAI's and TRL's words: ``messages``, ``prompt`` + ``completion``, ``text``."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..core.types import MAX_STACK, StackItem
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


Content = ChatRow | CompletionRow | TextRow


@dataclass(frozen=True, slots=True)
class DataRow:
    """One row as it was written."""

    line: int
    content: Content
    on_top_of: tuple[StackItem, ...] | None = None
    """The row's own frozen stack underneath; empty: the bare base; None: the job's stacks take turns."""
    ignored: tuple[str, ...] = ()
    """Fields that mean nothing here."""


class BadRow(Exception):
    """A row that cannot be used: all that is wrong with it, one sentence each."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


_PREFERENCE = ({"chosen", "rejected"}, {"preferred_output", "non_preferred_output"})
_SHAPES: dict[str, set[str]] = {
    "messages": {"messages", "tools"},
    "prompt + completion": {"prompt", "completion", "tools"},
    "text": {"text"},
}
_WANTED = 'a row has "messages", "prompt" and "completion", or "text"'


def parse_row(line: int, value: Mapping[str, Any]) -> DataRow:
    """Check one JSON object and give it its shape. Raises :class:`BadRow` with everything that is wrong."""
    problems: list[str] = []
    on_top_of = _on_top_of(value.get("on_top_of"), problems)
    content = _content(value, problems)
    _check_text(value, "", problems)
    if problems or content is None:
        raise BadRow(problems)
    used = set().union(*(fields for fields in _SHAPES.values() if fields & value.keys() - {"tools"}))
    ignored = tuple(sorted(value.keys() - used - {"on_top_of"}))
    return DataRow(line, content, on_top_of, ignored)


def _content(value: Mapping[str, Any], problems: list[str]) -> Content | None:
    for pair in _PREFERENCE:
        if pair & value.keys():
            problems.append(
                f"is a preference pair ({' / '.join(sorted(pair))}); training on preferences is not supported yet: "
                'give "prompt" and "completion", or "messages"'
            )
            return None
    shapes = [name for name, fields in _SHAPES.items() if (fields - {"tools"}) & value.keys()]
    if not shapes:
        keys = ", ".join(sorted(map(str, value))[:6]) or "none"
        problems.append(f"has no known shape (fields: {keys}); {_WANTED}")
        return None
    if len(shapes) > 1:
        problems.append(f"has two shapes, {' and '.join(shapes)}; leave one out")
        return None
    tools = _tools(value, problems)
    if shapes == ["messages"]:
        return _chat(value["messages"], "messages", tools, problems)
    if shapes == ["text"]:
        return TextRow(value["text"]) if _is_text(value, "text", problems) else None
    missing = [name for name in ("prompt", "completion") if name not in value]
    if missing:
        problems.append(f"has no {missing[0]}; prompt and completion go together")
        return None
    prompt, completion = value["prompt"], value["completion"]
    if isinstance(prompt, list) or isinstance(completion, list):
        return _chat_completion(prompt, completion, tools, problems)
    if all([_is_text(value, "prompt", problems), _is_text(value, "completion", problems)]):
        return CompletionRow(prompt, completion)
    return None


def _chat_completion(prompt: Any, completion: Any, tools: Any, problems: list[str]) -> ChatRow | None:
    """TRL's conversational pair: the turns of the prompt are never learned."""
    if not (isinstance(prompt, list) and isinstance(completion, list)):
        problems.append("prompt and completion must both be strings or both be lists of messages")
        return None
    if not completion:
        problems.append("completion is empty")
        return None
    return _chat([*prompt, *completion], "prompt + completion", tools, problems, learn_from=len(prompt))


def _chat(value: Any, name: str, tools: Any, problems: list[str], learn_from: int = 0) -> ChatRow | None:
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
        problems.append(f"no assistant turn in {'completion' if learn_from else name}, so there is nothing to learn")
    elif not any(trained):
        problems.append("every assistant turn has weight 0, so there is nothing to learn")
    elif trained[0]:
        problems.append(
            f"{name}[0] is an assistant turn that answers nothing; begin with a user turn or give it weight 0"
        )
    return ChatRow(messages, trained, tools) if len(problems) == before else None


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
    for call in calls:
        function = call.get("function")
        if isinstance(function, dict) and isinstance(function.get("arguments"), str):
            try:
                call = {**call, "function": {**function, "arguments": json.loads(function["arguments"])}}
            except (ValueError, RecursionError):
                problems.append(f"{path}: arguments of {function.get('name')!r} are not JSON")
        result.append(call)
    return result


def _tools(value: Mapping[str, Any], problems: list[str]) -> tuple[Mapping[str, Any], ...] | None:
    if "functions" in value:
        problems.append('"functions" is the old spelling; use "tools"')
    tools = value.get("tools")
    if tools is None:
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        problems.append("tools must be a list of objects")
        return None
    return tuple(tools)


def _on_top_of(value: Any, problems: list[str]) -> tuple[StackItem, ...] | None:
    """A frozen stack: a name, a list of names, or an object name -> weight."""
    if value is None:
        return None
    pairs: list[tuple[Any, Any]] | None = None
    if isinstance(value, dict):
        pairs = list(value.items())
    elif isinstance(value, str | list):
        pairs = [(name, 1.0) for name in ([value] if isinstance(value, str) else value)]
    if pairs is None or not all(isinstance(name, str) and name for name, _ in pairs):
        problems.append("on_top_of must be a list of adapter names or an object of name: weight")
        return None
    if len(pairs) > MAX_STACK:
        problems.append(f"on_top_of has {len(pairs)} adapters; at most {MAX_STACK} can be stacked")
    if len({name for name, _ in pairs}) < len(pairs):
        problems.append("on_top_of names an adapter twice")
    for name, weight in pairs:
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
            problems.append(f"on_top_of: the weight of {name!r} must be a finite number")
            return None
    return tuple(StackItem(name, float(weight)) for name, weight in pairs)


def _is_text(value: Mapping[str, Any], name: str, problems: list[str]) -> bool:
    text = value[name]
    if not isinstance(text, str):
        problems.append(f"{name} must be a string")
    elif not text.strip():
        problems.append(f"{name} is empty" + ("; use text for rows without a prompt" if name == "prompt" else ""))
    else:
        return True
    return False


def _check_text(value: Any, path: str, problems: list[str]) -> None:
    """JSON can spell half of a surrogate pair (D83D alone, say), which is no text."""
    if isinstance(value, str):
        if not value.isascii() and any("\ud800" <= char <= "\udfff" for char in value):
            problems.append(f"{path or 'a field name'} holds a lone surrogate, which is not valid Unicode")
    elif isinstance(value, dict):
        for key, item in value.items():
            _check_text(key, "", problems)
            _check_text(item, f"{path}.{key}" if path else str(key), problems)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _check_text(item, f"{path}[{index}]", problems)
