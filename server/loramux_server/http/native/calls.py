"""One method of ``loramux.v1`` over HTTP."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from ...api.methods import Method
from ...core import call as calls
from ...core.errors import Code, Error, invalid_field
from ...services.availability import Availability
from ...services.common.calls import rename
from ..bodies.multipart import OVERHEAD, Form
from ..exchanges.errors import REQUEST_ID
from ..exchanges.exchange import Exchange
from .errors import error_event
from .files import MOST_HEADER_BYTES, archive, upload_requests
from .messages import as_json, gives_files, message_of

TIMEOUT = "connect-timeout-ms"
MOST_TIMEOUT_DIGITS = 10
"""As Connect has it."""


class NativeCall:
    """Answers one method, in the form that its descriptor asks for.

    Requests and responses are JSON; a stream of requests is a form with files; a stream of responses is server-sent
    events, one of files a zip archive.
    """

    def __init__(self, method: Method, availability: Availability) -> None:
        self._method, self._availability = method, availability
        self._gives_files = gives_files(method.descriptor.output_type)

    async def answer(self, exchange: Exchange) -> None:
        """Answer within the time that the caller gives."""
        seconds = _timeout(exchange)
        if seconds is not None:
            calls.enter(replace(calls.current(), deadline=time.monotonic() + seconds))
        try:
            async with asyncio.timeout(seconds):
                await self._answer(exchange)
        except TimeoutError:
            what = f"the answer took longer than {TIMEOUT} allows: {seconds:g} s"
            raise Error(Code.DEADLINE_EXCEEDED, what) from None

    async def _answer(self, exchange: Exchange) -> None:
        if self._method.descriptor.client_streaming:
            await self._upload(exchange)
            return
        request = message_of(self._method.request, await exchange.json())
        if own := getattr(request, "request_id", ""):
            exchange.request_id = exchange.headers[REQUEST_ID] = rename(own).request_id
        answer = self._method.answer(request)
        async with exchange.ended_by_disconnect():
            if self._gives_files:
                await _send_files(exchange, answer)
            elif self._method.descriptor.server_streaming:
                exchange.error_event = lambda error: error_event(error, exchange.request_id)
                await exchange.send_events(_events(answer))
            else:
                await exchange.send_json(as_json(await answer))

    async def _upload(self, exchange: Exchange) -> None:
        limits = self._availability.open_context().limits
        most = max(limits.max_upload_bytes, limits.max_dataset_bytes) + MOST_HEADER_BYTES + OVERHEAD
        async with aclosing(exchange.pieces(most)) as pieces:
            form = Form(pieces, exchange.request_headers.get("content-type", ""))
            async with aclosing(upload_requests(form, self._method.request)) as requests:
                response = await self._method.answer(requests)
        await exchange.send_json(as_json(response))


async def _events(responses: AsyncGenerator[Any]) -> AsyncGenerator[Any]:
    async with aclosing(responses):
        async for response in responses:
            yield as_json(response)


async def _send_files(exchange: Exchange, responses: AsyncGenerator[Any]) -> None:
    async with aclosing(archive(responses)) as pieces:
        exchange.headers["content-disposition"] = "attachment"
        await exchange.send_pieces(pieces, "application/zip")


def _timeout(exchange: Exchange) -> float | None:
    """Seconds that the caller gives; None: any."""
    given = exchange.request_headers.get(TIMEOUT)
    if given is None:
        return None
    if not (given.isascii() and given.isdecimal() and len(given) <= MOST_TIMEOUT_DIGITS):
        raise invalid_field(TIMEOUT, f"must be milliseconds, at most {MOST_TIMEOUT_DIGITS} digits")
    return int(given) / 1000
