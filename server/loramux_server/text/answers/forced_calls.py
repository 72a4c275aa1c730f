"""Answers that must be tool calls: a grammar of the calls, in the form that the base's chat template has for them.

:mod:`.tool_calls` reads what such a grammar lets a model write.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from ...core.errors import FieldViolation, invalid, invalid_field
from ...core.types import Grammar, GrammarKind
from .tool_calls import HERMES_END, MARKS, ToolFormat

FIELD = "tool_choice"
_NO_ARGUMENTS = {"type": "object", "properties": {}, "additionalProperties": False}
"""The parameters of a tool that names none."""
_LAYOUT = {"x-guidance": {"whitespace_pattern": " ?"}}
"""Arguments are written on one line, as chat templates write them: a small model may not get lost in blanks."""


class ToolMode(StrEnum):
    """Whether an answer calls tools."""

    AUTO = "auto"
    """As the model likes."""
    NONE = "none"
    """It is not shown any."""
    REQUIRED = "required"
    """It must."""


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """What of the tools an answer calls. ``name``: the tool that must be called, once; ``single``: one call at most."""

    mode: ToolMode = ToolMode.AUTO
    name: str = ""
    single: bool = False


MODEL_CHOOSES = ToolChoice()


@dataclass(frozen=True, slots=True)
class _Tool:
    name: str
    parameters: Mapping[str, Any]


def forced_calls(
    choice: ToolChoice,
    tools: Sequence[Mapping[str, Any]],
    format: ToolFormat | None,
    *,
    max_bytes: int,
    mark_id: int | None = None,
) -> Grammar:
    """The grammar of an answer that is nothing but calls of ``tools``, with arguments that fit their schemas.

    ``mark_id``: the special token that is the format's mark, where it is one. ``max_bytes`` is for the grammar.
    Raises INVALID_ARGUMENT naming ``tool_choice`` or the tool at fault.
    """
    if format is None:
        what = "cannot force calls: the model's chat template has no form of tool calls that is known; use 'auto'"
        raise invalid_field(FIELD, what, reason="NO_TOOL_FORMAT")
    found: list[FieldViolation] = []
    named = [tool for i, each in enumerate(tools) if (tool := _tool(each, f"tools[{i}]", found)) is not None]
    if choice.name:
        named = [tool for tool in named if tool.name == choice.name]
        if not named and not found:
            found.append(FieldViolation(FIELD, f"is {choice.name[:80]!a}, which is none of the tools"))
    if found:
        raise invalid(found)
    text = "\n".join(_rules(named, format, choice.single or bool(choice.name), mark_id))
    if (size := len(text.encode())) > max_bytes:
        what = f"make a grammar of {size} bytes, at most {max_bytes} are allowed: offer fewer tools or smaller schemas"
        raise invalid_field("tools", what)
    return Grammar(GrammarKind.LARK, text, origin="tools")


def _rules(tools: Sequence[_Tool], format: ToolFormat, single: bool, mark_id: int | None) -> Iterator[str]:
    """The grammar, line by line, in Lark's notation."""
    mark = MARKS[format]
    if format is ToolFormat.HERMES:
        yield "start: call" if single else 'start: call ("\\n" call)*'
        yield f"call: {_text(mark + chr(10))} one {_text(chr(10) + HERMES_END)}"
    elif format is ToolFormat.MISTRAL:
        begin = f"<[{mark_id}]>" if mark_id is not None else _text(mark)
        yield f'start: {begin} "[" one {"" if single else """(", " one)*"""} "]"'
    else:
        yield "start: one"  # templates of this family take one call a turn
    yield "one: " + " | ".join(f"call_{i}" for i in range(len(tools)))
    key = "parameters" if format is ToolFormat.LLAMA3 else "arguments"
    for i, tool in enumerate(tools):
        name = json.dumps(tool.name, ensure_ascii=False)
        yield f'call_{i}: {_text(f"""{{"name": {name}, "{key}": """)} arguments_{i} "}}"'
        # A schema of its own: what it refers to is looked for from its root.
        yield f"arguments_{i}: %json {json.dumps({**_LAYOUT, 'type': 'object', **tool.parameters})}"


def _text(value: str) -> str:
    """A text in Lark's notation, which is that of JSON with all but ASCII escaped."""
    return json.dumps(value)


def _tool(tool: Mapping[str, Any], path: str, found: list[FieldViolation]) -> _Tool | None:
    """A tool as OpenAI writes it, its function inside or not."""
    function = tool.get("function", tool)
    where = f"{path}.function" if "function" in tool else path
    if not isinstance(function, Mapping):
        found.append(FieldViolation(where, "must be an object with name and parameters"))
        return None
    name, parameters = function.get("name"), function.get("parameters")
    if not isinstance(name, str) or not name:
        found.append(FieldViolation(f"{where}.name", "must be a text; a call that is forced needs the tool's name"))
        return None
    if parameters is None:
        return _Tool(name, _NO_ARGUMENTS)
    if not isinstance(parameters, Mapping) or parameters.get("type", "object") != "object":
        found.append(FieldViolation(f"{where}.parameters", "must be a JSON schema of an object"))
        return None
    return _Tool(name, parameters)
