"""``POST /v1/messages`` and ``POST /v1/messages/count_tokens``."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from ...core import call as calls
from ...core.types import Chunk
from ...services.availability import Availability
from ..bodies.fields import read
from ..bodies.parts import answer_format
from ..description.describe import describe
from ..exchanges.exchange import Exchange
from .answer import MessageAnswer
from .convert import generate_request, prompt_request
from .schema import CountRequest, MessageRequest
from .shapes import AnsweredMessages, MessageEvent, MessagesError, TokenCount


class Messages:
    """Answers messages, and counts the tokens of those that are not asked yet."""

    def __init__(self, availability: Availability) -> None:
        self._availability = availability

    @describe(body=MessageRequest, answer=AnsweredMessages, events=MessageEvent, error=MessagesError)
    async def create(self, exchange: Exchange) -> None:
        """Answer messages, at once or piece by piece."""
        asked = read(MessageRequest, await exchange.json())
        service = self._availability.open().generation
        request = generate_request(asked, calls.current(), service.defaults)
        shows_thoughts = asked.thinking is None or asked.thinking.display != "omitted"
        format = await answer_format(self._availability, request)
        answer = MessageAnswer(request, format, shows_thoughts=shows_thoughts)
        async with exchange.ended_by_disconnect():
            events = _events(answer, service.generate(request))
            if asked.stream:
                await exchange.send_events(events, named=True)
            else:
                async for _ in events:
                    pass
                await exchange.send_json(answer.message)

    @describe(body=CountRequest, answer=TokenCount, error=MessagesError)
    async def count_tokens(self, exchange: Exchange) -> None:
        """Count the tokens of a prompt, tools included."""
        asked = read(CountRequest, await exchange.json())
        service = self._availability.open().generation
        await exchange.send_json({"input_tokens": await service.count(prompt_request(asked, calls.current()))})


async def _events(answer: MessageAnswer, chunks: AsyncGenerator[Chunk]) -> AsyncGenerator[dict[str, Any]]:
    async with aclosing(chunks):
        async for chunk in chunks:
            for event in answer.add(chunk):
                yield event
