"""``POST /v1/completions``."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from ...core import call as calls
from ...core.errors import invalid_field
from ...core.types import Chunk, TokenLogprob, Usage, model_name
from ...services.availability import Availability
from ...services.inference.service import GenerationService
from ...services.inference.types import GenerateRequest
from ..bodies.fields import read
from ..description.describe import describe
from ..exchanges.exchange import Exchange
from .answer import FINISH, LEAST_LOGPROB, usage_of
from .convert import completion_requests
from .schema import CompletionRequest
from .shapes import TextCompletion

MOST_PROMPTS = 16


class Completions:
    """Continues plain prompts, one after the other where there are several."""

    def __init__(self, availability: Availability) -> None:
        self._availability = availability

    @describe(body=CompletionRequest, answer=TextCompletion, events=TextCompletion)
    async def create(self, exchange: Exchange) -> None:
        """Answer one request, at once or piece by piece."""
        asked = read(CompletionRequest, await exchange.json())
        service = self._availability.open().generation
        requests = completion_requests(asked, calls.current(), service.defaults)
        if len(requests) > MOST_PROMPTS:
            raise invalid_field("prompt", f"has {len(requests)} texts; at most {MOST_PROMPTS} are taken")
        made = _Texts(service, requests)
        async with exchange.ended_by_disconnect():
            if asked.stream:
                usage = asked.stream_options is not None and asked.stream_options.include_usage
                await exchange.send_events(made.stream(usage))
            else:
                await exchange.send_json(await made.whole())


class _Texts:
    """All choices of a request on their way to OpenAI's objects; a prompt's choices follow those of the one before."""

    def __init__(self, service: GenerationService, requests: list[GenerateRequest]) -> None:
        self._service, self._requests = service, requests
        self._logprobs = requests[0].sampling.logprobs is not None
        self._usage = Usage()
        self._head: dict[str, Any] = {
            "id": f"cmpl-{requests[0].request_id}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": "",
        }

    async def whole(self) -> dict[str, Any]:
        """``text_completion``."""
        texts: dict[int, str] = {}
        reasons: dict[int, str | None] = {}
        logprobs: dict[int, list[TokenLogprob]] = {}
        async with aclosing(self._chunks()) as chunks:
            async for index, chunk in chunks:
                texts[index] = texts.get(index, "") + chunk.text
                logprobs.setdefault(index, []).extend(chunk.logprobs)
                if chunk.finish_reason is not None:
                    reasons[index] = FINISH.get(chunk.finish_reason, "stop")
        choices = [
            {
                "index": index,
                "text": texts[index],
                "logprobs": logprobs_of(logprobs[index]) if self._logprobs else None,
                "finish_reason": reasons.get(index),
            }
            for index in sorted(texts)
        ]
        return {**self._head, "choices": choices, "usage": usage_of(self._usage)}

    async def stream(self, with_usage: bool) -> AsyncGenerator[Any]:
        """Events of ``text_completion``, usage when asked, ``[DONE]``."""
        offsets: dict[int, int] = {}
        async with aclosing(self._chunks()) as chunks:
            async for index, chunk in chunks:
                choice = {
                    "index": index,
                    "text": chunk.text,
                    "logprobs": logprobs_of(chunk.logprobs, offsets.get(index, 0)) if self._logprobs else None,
                    "finish_reason": chunk.finish_reason and FINISH.get(chunk.finish_reason, "stop"),
                }
                offsets[index] = offsets.get(index, 0) + len(chunk.text)
                yield {**self._head, "choices": [choice], **({"usage": None} if with_usage else {})}
        if with_usage:
            yield {**self._head, "choices": [], "usage": usage_of(self._usage)}
        yield "[DONE]"

    async def _chunks(self) -> AsyncGenerator[tuple[int, Chunk]]:
        for number, request in enumerate(self._requests):
            async with aclosing(self._service.generate(request)) as chunks:
                async for chunk in chunks:
                    if not self._head["model"]:
                        self._head["model"] = model_name(chunk.adapters)
                    if chunk.usage is not None:
                        self._usage = Usage(
                            self._usage.prompt_tokens + chunk.usage.prompt_tokens,
                            self._usage.completion_tokens + chunk.usage.completion_tokens,
                            self._usage.cached_tokens + chunk.usage.cached_tokens,
                        )
                    yield number * request.n + chunk.index, chunk


def logprobs_of(entries: list[TokenLogprob] | tuple[TokenLogprob, ...], offset: int = 0) -> dict[str, Any]:
    """The older form: lists beside each other. ``offset`` is where in the text the first token begins."""
    tokens, offsets, tops = [], [], []
    for entry in entries:
        spelt, *of_top = (piece.decode(errors="replace") for piece in entry.token_bytes or (b"",))
        tokens.append(spelt)
        offsets.append(offset)
        offset += len(spelt)
        tops.append(
            {text: max(logprob, LEAST_LOGPROB) for text, (_, logprob) in zip(of_top, entry.top, strict=False)} or None
        )
    return {
        "tokens": tokens,
        "token_logprobs": [max(entry.logprob, LEAST_LOGPROB) for entry in entries],
        "top_logprobs": tops,
        "text_offset": offsets,
    }
