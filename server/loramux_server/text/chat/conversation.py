"""Messages, tools and template arguments as requests and training rows write them: one check for both.

What is wrong is reported by field, so that a caller learns all of it at once. Text in place of a list or an object is
JSON.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from ...core.reading.json_values import BadJson, decode, why_unusable
from .chat_template import is_reserved

Report = Callable[[str, str], None]
"""Takes the name of a field and what is wrong with it."""
MAX_KWARGS = 64
"""Most entries of ``chat_template_kwargs``."""
MAX_KWARGS_BYTES = 16 * 1024
"""Longest JSON text of ``chat_template_kwargs``."""
TOOL_LIST = "must be a list of objects"
_KWARGS = 'must be an object of names and values, such as {"enable_thinking": false}'
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")


def read_message(value: Mapping[str, Any], path: str, report: Report) -> dict[str, Any]:
    """A message as templates expect it: content as one text, arguments of tool calls as objects, nothing that is None.

    ``path`` is what the caller calls the message. The role is not looked at.
    """
    message = {key: item for key, item in value.items() if item is not None}
    message["content"] = read_content(value.get("content"), f"{path}.content", report)
    for name in ("name", "tool_call_id"):
        if not isinstance(message.get(name, ""), str):
            report(f"{path}.{name}", "must be a string")
    if "tool_calls" in message:
        message["tool_calls"] = _tool_calls(message["tool_calls"], f"{path}.tool_calls", report)
    return message


def read_tools(value: Any, path: str, report: Report) -> tuple[Mapping[str, Any], ...] | None:
    """The tools that a conversation offers; None and an empty list are none."""
    tools = _value(value, path, TOOL_LIST, report)
    if tools is None:
        return None
    if not _are_objects(tools):
        report(path, TOOL_LIST)
        return None
    return tuple(tools) or None


def read_template_kwargs(value: Any, path: str, report: Report) -> dict[str, Any]:
    """Arguments of the chat template by name; None is none. Names that the template does not use are harmless."""
    if isinstance(value, str) and len(value) > MAX_KWARGS_BYTES:
        report(path, f"has {len(value)} characters; at most {MAX_KWARGS_BYTES} are allowed")
        return {}
    kwargs = _value(value, path, _KWARGS, report)
    if kwargs is None:
        return {}
    if not isinstance(kwargs, dict):
        report(path, _KWARGS)
        return {}
    if len(kwargs) > MAX_KWARGS:
        report(path, f"has {len(kwargs)} entries; at most {MAX_KWARGS} are allowed")
        return {}
    for name in kwargs:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            report(path, f"has the name {ascii(name)[:80]}; a name has up to 64 letters, digits and underscores")
        elif is_reserved(name):
            report(f"{path}.{name}", "is set by the server; leave it out")
    return kwargs


def read_content(content: Any, path: str, report: Report) -> str:
    """The text of a content, which is a text or a list of parts; a base model here reads text only."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list | tuple):
        report(path, "must be a string or a list of text parts")
        return ""
    texts = []
    for index, part in enumerate(content):
        where = f"{path}[{index}]"
        kind = part.get("type", "text") if isinstance(part, Mapping) else None
        if kind is None:
            report(where, "must be an object with type and text")
        elif kind != "text":
            report(f"{where}.type", f"is {ascii(kind)[:40]}; parts that are not text cannot be read: leave them out")
        elif not isinstance(part.get("text"), str):
            report(f"{where}.text", "must be a string")
        else:
            texts.append(part["text"])
    return "".join(texts)


def _tool_calls(value: Any, path: str, report: Report) -> list[Any]:
    """Tool calls with their arguments as objects: OpenAI writes them as JSON in a string, templates expect objects."""
    calls = _value(value, path, TOOL_LIST, report)
    if calls is None:
        return []
    if not _are_objects(calls):
        report(path, TOOL_LIST)
        return []
    result = []
    for index, call in enumerate(calls):
        function = call.get("function")
        if function is not None and not isinstance(function, dict):
            report(f"{path}[{index}].function", "must be an object with name and arguments")
            continue
        where = f"{path}[{index}]" + ("" if function is None else ".function")
        name = (call if function is None else function).get("name", "")
        if not isinstance(name, str):
            report(f"{where}.name", "must be a string")
        if function is not None and isinstance(function.get("arguments"), str):
            try:
                call = {**call, "function": {**function, "arguments": decode(function["arguments"])}}
            except BadJson:
                report(f"{where}.arguments", f"arguments of {str(name)[:40]!r} are not JSON")
            if problem := why_unusable(call["function"]["arguments"]):
                report(f"{where}.arguments", problem)
        result.append(call)
    return result


def _are_objects(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(item, dict) for item in value)


def _value(value: Any, path: str, wanted: str, report: Report) -> Any:
    """The value of JSON text, None if it cannot be used; anything else as it is."""
    if not isinstance(value, str):
        return value
    try:
        found = decode(value)
    except BadJson as error:
        report(path, f"{wanted}; its text {error}")
        return None
    if found is None:
        report(path, wanted)
    elif problem := why_unusable(found):
        report(path, problem)
        return None
    return found
