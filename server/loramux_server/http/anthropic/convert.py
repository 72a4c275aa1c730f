"""From Anthropic's requests to the generation that every door asks for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from ...core import types as core
from ...core.call import Call
from ...core.errors import invalid_field
from ...core.types import SamplingParams
from ...services.inference.types import GenerateRequest
from ...text.answers.forced_calls import MODEL_CHOOSES, ToolChoice, ToolMode
from ..bodies.fields import as_text
from ..bodies.names import parse_model
from .blocks import TextBlock, ToolResultBlock, ToolUseBlock
from .schema import CountRequest, JsonFormat, Message, MessageRequest, Tool

_SAME = ("max_tokens", "temperature", "top_p", "top_k", "min_p", "seed")
_MODES = {"auto": ToolMode.AUTO, "any": ToolMode.REQUIRED, "tool": ToolMode.REQUIRED, "none": ToolMode.NONE}
_BETWEEN = "\n"
"""What is between two texts of one turn: blocks are paragraphs."""


def generate_request(asked: MessageRequest, call: Call, defaults: SamplingParams) -> GenerateRequest:
    """Messages as a generation."""
    given = {name: value for name in _SAME if (value := getattr(asked, name)) is not None}
    shape = _shape(asked)
    return replace(
        prompt_request(asked, call),
        sampling=replace(defaults, **given),
        stop=tuple(asked.stop_sequences or ()),
        response_format=None if shape is None else {"type": "json_schema", "json_schema": as_text(shape.schema_)},
    )


def prompt_request(asked: CountRequest, call: Call) -> GenerateRequest:
    """What is asked of whom, without how it is to be answered."""
    system = _text(asked.system)
    messages = [core.Message("system", system)] if system else []
    messages += _joined(_turns(asked.messages))
    goes_on = asked.messages[-1].role == "assistant"
    if goes_on and messages[-1].tool_calls:
        raise invalid_field("messages", "end with tool_use: send a tool_result for each of its calls after them")
    return GenerateRequest(
        messages=tuple(messages),
        tools=as_text([_tool(tool) for tool in asked.tools] if asked.tools else None),
        chat_template_kwargs=as_text(_template_kwargs(asked) or None),
        continue_final_message=goes_on,
        deadline=call.deadline,
        principal=call.principal,
        request_id=call.request_id,
        adapters=parse_model(asked.model, asked.adapters),
        tool_choice=_tool_choice(asked),
    )


def _joined(turns: Iterable[core.Message]) -> list[core.Message]:
    """Turns, those of one role that follow each other as one."""
    found: list[tuple[core.Message, list[str]]] = []
    for turn in turns:
        texts = found.pop()[1] if found and _joins(found[-1][0], turn) else []
        texts.append(str(turn.content))
        found.append((turn, texts))
    return [replace(turn, content=_BETWEEN.join(texts)) for turn, texts in found]


def _joins(last: core.Message, turn: core.Message) -> bool:
    """Whether two turns are one: clients may send several of one role, which many templates refuse."""
    return last.role == turn.role and turn.role in ("user", "assistant") and not last.tool_calls


def _turns(messages: Iterable[Message]) -> Iterator[core.Message]:
    """Turns as chat templates have them: what tools answered is a turn of its own."""
    names: dict[str, str] = {}
    for number, message in enumerate(messages):
        blocks = [] if isinstance(message.content, str) else message.content
        texts = [message.content] if isinstance(message.content, str) else []
        calls: list[dict[str, Any]] = []
        for index, block in enumerate(blocks):
            where = f"messages[{number}].content[{index}]"
            if isinstance(block, TextBlock):
                texts.append(block.text)
            elif isinstance(block, ToolUseBlock):
                if message.role != "assistant":
                    raise invalid_field(where, "is tool_use, which only a turn of the assistant may have")
                names[block.id] = block.name
                function = {"name": block.name, "arguments": block.input}
                calls.append({"id": block.id, "type": "function", "function": function})
            elif isinstance(block, ToolResultBlock):
                if message.role != "user":
                    raise invalid_field(where, "is tool_result, which only a turn of the user may have")
                if texts:
                    yield core.Message("user", _BETWEEN.join(texts))
                    texts = []
                name = names.get(block.tool_use_id, "")
                yield core.Message("tool", _text(block.content), tool_call_id=block.tool_use_id, name=name)
        if texts or not any(isinstance(block, ToolResultBlock) for block in blocks):
            yield core.Message(message.role, _BETWEEN.join(texts), tool_calls=as_text(calls or None))


def _text(content: str | list[TextBlock]) -> str:
    return content if isinstance(content, str) else _BETWEEN.join(block.text for block in content)


def _tool(tool: Tool) -> dict[str, Any]:
    described = {} if tool.description is None else {"description": tool.description}
    return {"type": "function", "function": {"name": tool.name, **described, "parameters": tool.input_schema}}


def _tool_choice(asked: CountRequest) -> ToolChoice:
    given = asked.tool_choice
    if given is None:
        return MODEL_CHOOSES
    if (given.type == "tool") != bool(given.name):
        raise invalid_field("tool_choice.name", "must be given with type 'tool', and with no other type")
    return ToolChoice(_MODES[given.type], given.name or "", bool(given.disable_parallel_tool_use))


def _template_kwargs(asked: CountRequest) -> dict[str, Any]:
    """``thinking`` under the names that chat templates have for it; what the caller names itself goes first."""
    given = asked.chat_template_kwargs or {}
    if asked.thinking is None:
        return given
    thinks = asked.thinking.type != "disabled"
    return {"enable_thinking": thinks, "thinking": thinks, **given}


def _shape(asked: MessageRequest) -> JsonFormat | None:
    configured = asked.output_config.format if asked.output_config is not None else None
    if configured is not None and asked.output_format is not None:
        raise invalid_field("output_format", "must be left out beside output_config.format")
    return configured or asked.output_format
