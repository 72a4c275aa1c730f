"""From a response that is asked for to the chat that is the same, and its errors back to what the caller wrote."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from ....core.errors import Error, FieldViolation, invalid, invalid_field
from .schema import (
    CallItem,
    FunctionTool,
    JsonSchemaFormat,
    MessageItem,
    NamedChoice,
    OutputItem,
    ReasoningItem,
    ResponseRequest,
    TextConfig,
    TextPart,
)

_SAME = {
    *("model", "adapters", "chat_template_kwargs", "continue_final_message", "parallel_tool_calls"),
    *("temperature", "top_p", "top_k", "min_p", "seed"),
    *("repetition_penalty", "presence_penalty", "frequency_penalty", "top_logprobs"),
}
"""Fields that a chat has by the same name."""
_NAMES = {
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "max_completion_tokens": "max_output_tokens",
    "response_format.json_schema": "text.format.schema",
    "response_format": "text.format",
    "logprobs": "top_logprobs",
}
"""Fields of a chat, and what they are called here."""
_MESSAGE = re.compile(r"messages\[(\d+)\].*")
_SYSTEM = ("system", "developer")


@dataclass
class Chat:
    """The body of the same chat; ``sources`` has the field that each of its messages comes from."""

    body: dict[str, Any]
    messages: list[dict[str, Any]] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)

    def add(self, item: MessageItem | CallItem | OutputItem | ReasoningItem, source: str) -> None:
        """The item as a message, or as part of the last one."""
        match item:
            case MessageItem(role=role) if role in _SYSTEM and all(m["role"] in _SYSTEM for m in self.messages):
                self.instruct(item.content, source)
            case MessageItem():
                self._append(source, role=item.role, content=_parts(item.content))
            case CallItem():
                if not (self.messages and self.messages[-1]["role"] == "assistant"):
                    self._append(source, role="assistant")
                function = {"name": item.name, "arguments": item.arguments}
                calls = self.messages[-1].setdefault("tool_calls", [])
                calls.append({"id": item.call_id, "type": "function", "function": function})
            case OutputItem():
                self._append(source, role="tool", content=_parts(item.output), tool_call_id=item.call_id)

    def instruct(self, texts: list[TextPart], source: str) -> None:
        """What the model is told first is one message: many templates take no second one."""
        if self.messages:
            self.messages[0]["content"] += [_part("\n\n"), *_parts(texts)]
        else:
            self._append(source, role="system", content=_parts(texts))

    def told(self, error: Error) -> Error:
        """An error about the chat in words of the response that was asked for."""
        if not error.violations:
            return error
        found = [FieldViolation(self._field(v.field), v.description) for v in error.violations]
        if error.message == invalid(error.violations).message:
            return invalid(found, reason=error.reason)
        return Error(
            error.code,
            error.message,
            reason=error.reason,
            violations=found,
            retry_after=error.retry_after,
            exceeded=error.exceeded,
        )

    def _append(self, source: str, **message: Any) -> None:
        self.messages.append(message)
        self.sources.append(source)

    def _field(self, name: str) -> str:
        if (found := _MESSAGE.fullmatch(name)) and int(found[1]) < len(self.sources):
            return self.sources[int(found[1])]
        for chats, ours in _NAMES.items():
            if name == chats or name.startswith((f"{chats}.", f"{chats}[")):
                return ours + name.removeprefix(chats)
        return name.replace(".function", "")


def chat_of(asked: ResponseRequest) -> Chat:
    """The chat that gives the same answer."""
    if asked.top_logprobs and not asked.shows_logprobs:
        raise invalid_field("top_logprobs", 'needs "message.output_text.logprobs" in include')
    body = asked.model_dump(include=_SAME, exclude_none=True)
    if not asked.shows_logprobs:
        body.pop("top_logprobs", None)
    given = {
        "logprobs": asked.shows_logprobs or None,
        "max_completion_tokens": asked.max_output_tokens,
        "tools": None if asked.tools is None else [_tool(tool) for tool in asked.tools],
        "tool_choice": _choice(asked.tool_choice),
        "response_format": _format(asked.text),
    }
    chat = Chat({**body, **{name: value for name, value in given.items() if value is not None}})
    if asked.instructions:
        chat.instruct([TextPart(type="input_text", text=asked.instructions)], "instructions")
    for i, item in enumerate(asked.input):
        chat.add(item, f"input[{i}]")
    chat.body["messages"] = chat.messages
    return chat


def _parts(texts: list[TextPart]) -> list[dict[str, Any]]:
    return [_part(part.text) for part in texts]


def _part(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _tool(tool: FunctionTool) -> dict[str, Any]:
    function = tool.model_dump(include={"name", "description", "parameters"}, exclude_none=True)
    return {"type": "function", "function": function}


def _choice(choice: str | NamedChoice | None) -> Any:
    if isinstance(choice, NamedChoice):
        return {"type": "function", "function": {"name": choice.name}}
    return choice


def _format(text: TextConfig | None) -> dict[str, Any] | None:
    if text is None or text.format is None:
        return None
    if isinstance(text.format, JsonSchemaFormat):
        named = text.format.model_dump(by_alias=True, exclude_none=True, exclude={"type"})
        return {"type": "json_schema", "json_schema": named}
    return {"type": text.format.type}
