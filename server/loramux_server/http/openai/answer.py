"""One choice of a chat as it is made: content, thoughts and tool calls from its text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ...core.types import Chunk, FinishReason, TokenLogprob, Usage
from ...text.reasoning import ReasoningReader, Thought
from ...text.tool_calls import ToolCall, ToolCallReader, ToolFormat

FINISH = {FinishReason.STOP: "stop", FinishReason.LENGTH: "length", FinishReason.CANCELLED: "stop"}


@dataclass(frozen=True, slots=True)
class AnswerFormat:
    """What a chat's answers may hold beside content."""

    tools: ToolFormat | None = None
    """None: calls are not looked for."""
    reasoning: bool = False
    opened: bool = False
    """Whether the prompt ends inside the thoughts."""


@dataclass
class ChoiceAnswer:
    """Takes the chunks of one choice; ``delta`` is what each adds to OpenAI's message, ``message`` all of it."""

    index: int
    format: AnswerFormat
    content: str = ""
    thoughts: str = ""
    calls: list[dict[str, Any]] = field(default_factory=list)
    logprobs: list[dict[str, Any]] = field(default_factory=list)
    finish_reason: str | None = None

    def __post_init__(self) -> None:
        self._reasoning = ReasoningReader(self.format.opened) if self.format.reasoning else None
        self._tools = ToolCallReader(self.format.tools) if self.format.tools is not None else None

    def add(self, chunk: Chunk) -> Iterator[dict[str, Any]]:
        """The deltas that a chunk makes; there may be none yet."""
        self.logprobs += [logprob_of(entry) for entry in chunk.logprobs]
        for part in self._parts(chunk):
            match part:
                case Thought(text):
                    self.thoughts += text
                    yield {"reasoning_content": text}
                case ToolCall():
                    call = {
                        "id": f"call_{self.index}_{len(self.calls)}",
                        "type": "function",
                        "function": {"name": part.name, "arguments": part.arguments},
                    }
                    self.calls.append(call)
                    yield {"tool_calls": [{"index": len(self.calls) - 1, **call}]}
                case text:
                    self.content += text
                    yield {"content": text}
        if chunk.finish_reason is not None:
            self.finish_reason = "tool_calls" if self.calls else FINISH.get(chunk.finish_reason, "stop")

    @property
    def message(self) -> dict[str, Any]:
        """The whole turn."""
        message: dict[str, Any] = {"role": "assistant", "content": self.content or (None if self.calls else "")}
        message["refusal"] = None
        if self.thoughts:
            message["reasoning_content"] = self.thoughts
        if self.calls:
            message["tool_calls"] = self.calls
        return message

    def _parts(self, chunk: Chunk) -> Iterator[str | Thought | ToolCall]:
        done = chunk.finish_reason is not None
        if self._reasoning is None:
            yield from self._called([chunk.text] if chunk.text else [], done)
            return
        parts = [*self._reasoning.push(chunk.text), *(self._reasoning.finish() if done else ())]
        yield from (part for part in parts if isinstance(part, Thought))
        yield from self._called([part for part in parts if isinstance(part, str)], done)

    def _called(self, texts: list[str], done: bool) -> Iterator[str | ToolCall]:
        if self._tools is None:
            yield from texts
            return
        for text in texts:
            yield from self._tools.push(text)
        if done:
            yield from self._tools.finish()


def logprob_of(entry: TokenLogprob) -> dict[str, Any]:
    """One token's entry of ``logprobs.content``."""
    spelt, *of_top = entry.token_bytes or (b"",) * (1 + len(entry.top))
    return {
        **_token(spelt, entry.logprob),
        "top_logprobs": [_token(added, logprob) for (_, logprob), added in zip(entry.top, of_top, strict=True)],
    }


def _token(spelt: bytes, logprob: float) -> dict[str, Any]:
    return {"token": spelt.decode(errors="replace"), "logprob": logprob, "bytes": list(spelt)}


def usage_of(usage: Usage) -> dict[str, Any]:
    """OpenAI's count of tokens."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }
