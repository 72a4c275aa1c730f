"""``POST /v1/responses``, the tokens of one, and what is asked of an answer that is not kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import aclosing, contextmanager
from typing import Any

from ....core import call as calls
from ....core.errors import Code, Error
from ....services.availability import Availability
from ....services.inference.types import GenerateRequest
from ...bodies.fields import read
from ...bodies.parts import answer_format
from ...description.describe import describe
from ...exchanges.exchange import Exchange
from ..convert import chat_request
from ..schema import ChatRequest
from .convert import chat_of
from .events import Events
from .objects import ResponseObject
from .schema import ResponseRequest
from .shapes import AnyEvent, InputTokens, Response


class Responses:
    """Answers what is asked as a response; it is the same chat to the services."""

    def __init__(self, availability: Availability) -> None:
        self._availability = availability

    @describe(body=ResponseRequest, answer=Response, events=AnyEvent)
    async def create(self, exchange: Exchange) -> None:
        """Answer one, at once or event by event."""
        asked = read(ResponseRequest, await exchange.json())
        with self._as_chat(asked) as request:
            response = ResponseObject(asked, request)
            events = Events(response, await answer_format(self._availability, request))
            exchange.error_event = events.failed
            chunks = self._availability.open().generation.generate(request)
            async with exchange.ended_by_disconnect(), aclosing(events.of(chunks)) as told:
                if asked.stream:
                    await exchange.send_events(told, named=True)
                    return
                async for _ in told:
                    pass
                await exchange.send_json(response.shown())

    @describe(body=ResponseRequest, answer=InputTokens)
    async def count(self, exchange: Exchange) -> None:
        """Count the tokens of a prompt, tools included."""
        asked = read(ResponseRequest, await exchange.json())
        with self._as_chat(asked) as request:
            tokens = await self._availability.open().generation.count(request)
        await exchange.send_json({"object": "response.input_tokens", "input_tokens": tokens})

    @describe(answer=dict[str, Any])
    async def absent(self, exchange: Exchange) -> None:
        """Always 404: no answer is kept, so there is none to be had later."""
        id = exchange.path_params["response_id"]
        what = f"there is no response {id[:80]!r}: answers are not kept; send all items of the conversation as input"
        raise Error(Code.NOT_FOUND, what)

    @describe(body=dict[str, Any], answer=dict[str, Any])
    async def compact(self, exchange: Exchange) -> None:
        """Always 404: no conversation is made shorter here."""
        raise Error(Code.NOT_FOUND, "conversations are not compacted here; send fewer items as input")

    @contextmanager
    def _as_chat(self, asked: ResponseRequest) -> Iterator[GenerateRequest]:
        """The same chat. Its errors name the fields of the response that was asked for."""
        chat = chat_of(asked)
        try:
            defaults = self._availability.open().generation.defaults
            yield chat_request(read(ChatRequest, chat.body), calls.current(), defaults)
        except Error as error:
            raise chat.told(error) from None
