"""What every request gets, whatever its route: an id, the one decision about calls, errors as OpenAI has them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

from starlette.types import Receive, Scope, Send

from ..core.errors import Error
from ..services.access.access import Incoming
from ..services.access.credentials import Credentials
from ..services.common.calls import Calls, request_id
from .certificates import certificate_names
from .errors import error_headers, error_object, status_of
from .exchange import Exchange, Limits

REQUEST_ID = "x-request-id"

Handler: TypeAlias = Callable[[Exchange], Awaitable[None]]
ErrorBody: TypeAlias = Callable[[Error, str], Any]
"""Makes the JSON of an error and the id of its request, as the clients of an API read it."""


class Endpoint:
    """Answers one method of the table of methods; an ASGI application of its own."""

    def __init__(
        self, method: str, handler: Handler, calls: Calls, limits: Limits, errors: ErrorBody = error_object
    ) -> None:
        self._method, self._handler, self._errors = method, handler, errors
        self._calls, self._limits = calls, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(scope, receive, send, self._limits)
        headers = exchange.request_headers
        id = request_id(headers.get(REQUEST_ID, ""))
        exchange.headers[REQUEST_ID] = id
        exchange.error_body = exchange.error_event = lambda error: self._errors(error, exchange.headers[REQUEST_ID])
        host, port = scope.get("client") or ("", 0)
        incoming = Incoming(
            method=self._method,
            request_id=id,
            credentials=Credentials(
                tuple(headers.getlist("authorization")), certificate_names(scope), f"{host}:{port}" if host else ""
            ),
        )
        try:
            await self._calls.answer(incoming, lambda: self._handler(exchange), gone=lambda: exchange.disconnected)
        except Error as error:
            with contextlib.suppress(Error, OSError):
                await send_error(exchange, error)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            assert task is not None
            if task.cancelling() > 1 or not exchange.disconnected:
                raise  # the server ends, not the client
            task.uncancel()
        except Exception:
            if not exchange.disconnected:
                raise


async def send_error(exchange: Exchange, error: Error) -> None:
    """The error as the whole answer, or as the last event of a stream that has begun.

    Any other answer that has begun is cut short: the connection ends before all announced bytes have come.
    """
    if exchange.started:
        if not exchange.sends_events:
            return
        await exchange.send_event(exchange.error_event(error))
        await exchange.end()
        return
    exchange.headers.update(error_headers(error))
    await exchange.send_json(exchange.error_body(error), status_of(error))
