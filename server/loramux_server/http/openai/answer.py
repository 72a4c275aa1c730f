"""One choice of a chat as it is made: content, thoughts and tool calls from its text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ...core.types import Chunk, FinishReason, TokenLogprob, Usage
from ...text.answers.reasoning import Thought
from ...text.answers.tool_calls import ToolCall, new_call_id
from ..bodies.parts import AnswerFormat, PartReader

LEAST_LOGPROB = -9999.0
"""What OpenAI writes for a token that is very unlikely: JSON has no infinity."""

FINISH = {FinishReason.STOP: "stop", FinishReason.LENGTH: "length", FinishReason.CANCELLED: "stop"}


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
        self._reader = PartReader(self.format)

    def add(self, chunk: Chunk) -> Iterator[dict[str, Any]]:
        """The deltas that a chunk makes; there may be none yet."""
        self.logprobs += [logprob_of(entry) for entry in chunk.logprobs]
        for part in self._reader.push(chunk):
            match part:
                case Thought(text):
                    self.thoughts += text
                    yield {"reasoning_content": text}
                case ToolCall():
                    call = {
                        "id": new_call_id(self.format.tools),
                        "type": "function",
                        "function": {"name": part.name, "arguments": part.arguments},
                    }
                    self.calls.append(call)
                    yield {"tool_calls": [{"index": len(self.calls) - 1, **call}]}
                case text:
                    self.content += text
                    yield {"content": text}
        if chunk.finish_reason is not None:
            # OpenAI says "stop" where the request names the function.
            called = bool(self.calls) and not self.format.named and chunk.finish_reason is FinishReason.STOP
            self.finish_reason = "tool_calls" if called else FINISH.get(chunk.finish_reason, "stop")

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


def logprob_of(entry: TokenLogprob) -> dict[str, Any]:
    """One token's entry of ``logprobs.content``."""
    spelt, *of_top = entry.token_bytes or (b"",) * (1 + len(entry.top))
    return {
        **_token(spelt, entry.logprob),
        "top_logprobs": [_token(added, logprob) for (_, logprob), added in zip(entry.top, of_top, strict=True)],
    }


def _token(spelt: bytes, logprob: float) -> dict[str, Any]:
    return {
        "token": spelt.decode(errors="replace"),
        "logprob": max(logprob, LEAST_LOGPROB),
        "bytes": list(spelt),
    }


def usage_of(usage: Usage) -> dict[str, Any]:
    """OpenAI's count of tokens."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }
