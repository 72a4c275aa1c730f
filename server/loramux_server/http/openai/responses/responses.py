"""``POST /v1/responses``, and what is asked of an answer that is not kept."""

from __future__ import annotations

from contextlib import aclosing
from typing import Any

from ....core import call as calls
from ....core.errors import Code, Error
from ....services.availability import Availability
from ...describe import describe
from ...exchange import Exchange
from ...fields import read
from ...parts import answer_format
from ..convert import chat_request
from ..schema import ChatRequest
from .convert import Chat, chat_of
from .events import Events
from .objects import ResponseObject
from .schema import ResponseRequest
from .shapes import AnyEvent, Response


class Responses:
    """Answers what is asked as a response; it is the same chat to the services."""

    def __init__(self, availability: Availability) -> None:
        self._availability = availability

    @describe(body=ResponseRequest, answer=Response, events=AnyEvent)
    async def create(self, exchange: Exchange) -> None:
        """Answer one, at once or event by event."""
        asked = read(ResponseRequest, await exchange.json())
        chat = chat_of(asked)
        try:
            await self._answer(exchange, asked, chat)
        except Error as error:
            raise chat.told(error) from None

    @describe(answer=dict[str, Any])
    async def absent(self, exchange: Exchange) -> None:
        """No answer is kept, so there is none to be had later."""
        id = exchange.path_params["response_id"]
        what = f"there is no response {id[:80]!r}: answers are not kept; send all items of the conversation as input"
        raise Error(Code.NOT_FOUND, what)

    async def _answer(self, exchange: Exchange, asked: ResponseRequest, chat: Chat) -> None:
        service = self._availability.open().generation
        request = chat_request(read(ChatRequest, chat.body), calls.current(), service.defaults)
        response = ResponseObject(asked, request)
        events = Events(response, await answer_format(self._availability, request))
        exchange.error_event = events.failed
        async with exchange.ended_by_disconnect(), aclosing(events.of(service.generate(request))) as told:
            if asked.stream:
                await exchange.send_events(told, named=True)
                return
            async for _ in told:
                pass
            await exchange.send_json(response.shown())
