"""One answer as it is made: Anthropic's blocks, the events that tell of them, and the whole message."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from ...core.reading.json_values import BadJson, decode, why_unusable
from ...core.types import Chunk, FinishReason, Usage, model_name
from ...services.inference.types import GenerateRequest
from ...text.answers.reasoning import Thought
from ...text.answers.tool_calls import ToolCall, new_call_id
from ..bodies.fields import as_text
from ..bodies.parts import AnswerFormat, Part, PartReader

_EMPTY: dict[str, dict[str, Any]] = {
    "text": {"type": "text", "text": "", "citations": None},
    "thinking": {"type": "thinking", "thinking": "", "signature": ""},
}
"""Blocks as they begin. Thoughts are not signed: nothing here would check that."""
_MORE_USAGE = {"cache_creation": None, "inference_geo": None, "service_tier": "standard"}
"""What the usage of a whole message has beside that of an event."""


class MessageAnswer:
    """Takes the chunks of an answer; gives events, and the ``message`` that they tell.

    ``shows_thoughts``: whether blocks of thoughts have their text.
    """

    def __init__(self, request: GenerateRequest, format: AnswerFormat, *, shows_thoughts: bool = True) -> None:
        self._most_tokens = request.sampling.max_tokens
        self._shows_thoughts = shows_thoughts
        self._tools = format.tools
        self._reader = PartReader(format)
        self._open = False
        self._content: list[dict[str, Any]] = []
        self.message: dict[str, Any] = {
            "id": f"msg_{request.request_id}",
            "type": "message",
            "role": "assistant",
            "model": "",
            "content": self._content,
            "stop_reason": None,
            "stop_sequence": None,
            "stop_details": None,
            "container": None,
            "usage": None,
        }

    def add(self, chunk: Chunk) -> Iterator[dict[str, Any]]:
        """The events that a chunk makes; there may be none."""
        if chunk.usage_so_far is not None:
            self.message["model"] = model_name(chunk.adapters)
            self.message["usage"] = {**usage_of(chunk.usage_so_far), **_MORE_USAGE}
            yield {"type": "message_start", "message": {**self.message, "content": []}}
        for part in self._reader.push(chunk):
            yield from self._add(part)
        if chunk.finish_reason is not None:
            yield from self._stop()
            usage = chunk.usage or Usage()
            self._end(chunk, usage)
            ended = {key: self.message[key] for key in ("container", "stop_reason", "stop_sequence", "stop_details")}
            yield {"type": "message_delta", "delta": ended, "usage": usage_of(usage)}
            yield {"type": "message_stop"}

    def _add(self, part: Part) -> Iterator[dict[str, Any]]:
        match part:
            case Thought(text):
                yield from self._go_on("thinking", text if self._shows_thoughts else "")
            case ToolCall():
                yield from self._call(part)
            case text:
                yield from self._go_on("text", text)

    def _go_on(self, kind: str, text: str) -> Iterator[dict[str, Any]]:
        """More of a block of text or thoughts, which may be a new one."""
        if not (self._open and self._content[-1]["type"] == kind):
            yield from self._stop()
            yield self._start(_EMPTY[kind].copy())
        if text:
            self._content[-1][kind] += text
            yield self._delta({"type": f"{kind}_delta", kind: text})

    def _call(self, call: ToolCall) -> Iterator[dict[str, Any]]:
        given = _arguments(call)
        if given is None:  # the block has no place for arguments that are no object
            yield from self._go_on("text", json.dumps({"name": call.name, "arguments": call.arguments}))
            return
        yield from self._stop()
        block = {"type": "tool_use", "id": new_call_id(self._tools), "name": call.name, "input": {}}
        yield self._start({**block, "caller": {"type": "direct"}})
        self._content[-1]["input"] = given
        yield self._delta({"type": "input_json_delta", "partial_json": as_text(given)})

    def _start(self, block: dict[str, Any]) -> dict[str, Any]:
        self._content.append(block)
        self._open = True
        return {"type": "content_block_start", "index": len(self._content) - 1, "content_block": block.copy()}

    def _delta(self, delta: dict[str, Any]) -> dict[str, Any]:
        return {"type": "content_block_delta", "index": len(self._content) - 1, "delta": delta}

    def _stop(self) -> Iterator[dict[str, Any]]:
        """The end of the block that is open, if one is."""
        if not self._open:
            return
        self._open = False
        if self._content[-1]["type"] == "thinking":
            yield self._delta({"type": "signature_delta", "signature": ""})
        yield {"type": "content_block_stop", "index": len(self._content) - 1}

    def _end(self, chunk: Chunk, usage: Usage) -> None:
        self.message["usage"] = {**usage_of(usage), **_MORE_USAGE}
        if chunk.finish_reason is FinishReason.LENGTH:
            cut_by_context = usage.completion_tokens < self._most_tokens
            self.message["stop_reason"] = "model_context_window_exceeded" if cut_by_context else "max_tokens"
        elif any(block["type"] == "tool_use" for block in self._content):
            self.message["stop_reason"] = "tool_use"
        elif chunk.stop:
            self.message |= {"stop_reason": "stop_sequence", "stop_sequence": chunk.stop}
        else:
            self.message["stop_reason"] = "end_turn"


def _arguments(call: ToolCall) -> dict[str, Any] | None:
    """The arguments of a call; None: they are no object, or hold what JSON cannot carry on."""
    try:
        value = decode(call.arguments)
    except BadJson:
        return None
    return value if isinstance(value, dict) and not why_unusable([call.name, value]) else None


def usage_of(usage: Usage) -> dict[str, Any]:
    """Anthropic's count of tokens: those from the prefix cache are no input tokens."""
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": None,
        "server_tool_use": None,
    }
