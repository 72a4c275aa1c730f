"""``POST /v1/chat/completions``."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from ...core import call as calls
from ...core.types import Chunk, model_name
from ...services.availability import Availability
from ...services.inference.types import GenerateRequest
from ..bodies.fields import read
from ..bodies.parts import AnswerFormat, answer_format
from ..description.describe import describe
from ..exchanges.exchange import Exchange
from .answer import ChoiceAnswer, usage_of
from .convert import chat_request
from .schema import ChatRequest
from .shapes import ChatCompletion, ChatCompletionChunk


class ChatCompletions:
    """Answers chats."""

    def __init__(self, availability: Availability) -> None:
        self._availability = availability

    @describe(body=ChatRequest, answer=ChatCompletion, events=ChatCompletionChunk)
    async def create(self, exchange: Exchange) -> None:
        """Answer one chat, at once or piece by piece."""
        asked = read(ChatRequest, await exchange.json())
        service = self._availability.open().generation
        request = chat_request(asked, calls.current(), service.defaults)
        made = _Answers(request, await answer_format(self._availability, request))
        async with exchange.ended_by_disconnect():
            chunks = service.generate(request)
            if asked.stream:
                usage = asked.stream_options is not None and asked.stream_options.include_usage
                await exchange.send_events(made.stream(chunks, usage))
            else:
                await exchange.send_json(await made.whole(chunks))


class _Answers:
    """All choices of a chat on their way to OpenAI's objects."""

    def __init__(self, request: GenerateRequest, format: AnswerFormat) -> None:
        self._request = request
        self._choices = [ChoiceAnswer(i, format) for i in range(max(0, min(request.n, 1024)))]
        self._head: dict[str, Any] = {"id": f"chatcmpl-{request.request_id}", "created": int(time.time()), "model": ""}

    async def whole(self, chunks: AsyncGenerator[Chunk]) -> dict[str, Any]:
        """``chat.completion``."""
        usage = None
        async with aclosing(chunks):
            async for chunk in chunks:
                self._named(chunk)
                usage = chunk.usage or usage
                for _ in self._choices[chunk.index].add(chunk):
                    pass
        asked = self._request.sampling.logprobs is not None
        return {
            **self._head,
            "object": "chat.completion",
            "choices": [
                {
                    "index": choice.index,
                    "message": choice.message,
                    "logprobs": {"content": choice.logprobs, "refusal": None} if asked else None,
                    "finish_reason": choice.finish_reason,
                }
                for choice in self._choices
            ],
            "usage": None if usage is None else usage_of(usage),
        }

    async def stream(self, chunks: AsyncGenerator[Chunk], with_usage: bool) -> AsyncGenerator[Any]:
        """Events of ``chat.completion.chunk``: the role first, the reason last, usage when asked, ``[DONE]``."""
        usage: dict[str, Any] | None = None
        began = False
        async with aclosing(chunks):
            async for chunk in chunks:
                self._named(chunk)
                if not began:
                    began = True
                    for choice in self._choices:
                        yield self._event(choice.index, {"role": "assistant", "content": ""}, with_usage)
                if chunk.usage is not None:
                    usage = usage_of(chunk.usage)
                for event in self._events(chunk, with_usage):
                    yield event
        if with_usage:
            yield {**self._head, "object": "chat.completion.chunk", "choices": [], "usage": usage}
        yield "[DONE]"

    def _events(self, chunk: Chunk, with_usage: bool) -> list[dict[str, Any]]:
        choice = self._choices[chunk.index]
        known = len(choice.logprobs)
        events = [self._event(choice.index, delta, with_usage) for delta in choice.add(chunk)]
        if (added := choice.logprobs[known:]) and self._request.sampling.logprobs is not None:
            if not events:
                events.append(self._event(choice.index, {}, with_usage))
            events[0]["choices"][0]["logprobs"] = {"content": added, "refusal": None}
        if choice.finish_reason is not None:
            events.append(self._event(choice.index, {}, with_usage, choice.finish_reason))
        return events

    def _event(self, index: int, delta: dict[str, Any], with_usage: bool, finish: str | None = None) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}
        event = {**self._head, "object": "chat.completion.chunk", "choices": [choice]}
        return {**event, "usage": None} if with_usage else event

    def _named(self, chunk: Chunk) -> None:
        if not self._head["model"]:
            self._head["model"] = model_name(chunk.adapters)
