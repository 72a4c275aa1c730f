"""What every request gets, whatever its route: an id, the one decision about calls, errors as its API has them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import TypeAlias

from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from ...core.errors import Error
from ...core.observing.observer import RequestRefused
from ...core.observing.tracing import Arrival, Attributes, TraceContext
from ...services.access.access import Incoming
from ...services.access.credentials import Credentials
from ...services.common.calls import Calls
from .connection import certificate_names
from .errors import OPENAI, Convention, error_headers
from .exchange import Exchange
from .limits import Limits
from .rates import rate_headers

Handler: TypeAlias = Callable[[Exchange], Awaitable[None]]


class Endpoint:
    """Answers one method of the table of methods, at the path ``route``; an ASGI application of its own."""

    def __init__(
        self, method: str, route: str, handler: Handler, calls: Calls, limits: Limits, convention: Convention = OPENAI
    ) -> None:
        self._method, self._route, self._handler = method, route, handler
        self._calls, self._limits, self._convention = calls, limits, convention

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(scope, receive, send, self._limits, self._convention)
        exchange.late_headers = lambda: rate_headers(self._calls.rates())
        headers = exchange.request_headers
        incoming = Incoming(
            method=self._method,
            request_id=exchange.request_id,
            credentials=Credentials(_shown(headers), certificate_names(scope), exchange.peer),
            door="http",
            arrival=self._arrival(exchange),
            trace=TraceContext.parse(headers.getlist("traceparent"), headers.getlist("tracestate")),
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

    def _arrival(self, exchange: Exchange) -> Arrival:
        scope = exchange.request.scope

        def answered(code: str, error: Error | None) -> Attributes:
            status = exchange.status or (None if error is None else self._convention.status_of(error))
            return {} if status is None else {"http.response.status_code": status}

        attributes = {
            "http.request.method": scope["method"],
            "http.route": self._route,
            "url.path": scope["path"],
            "url.scheme": scope["scheme"],
            "network.protocol.version": scope["http_version"],
            "user_agent.original": exchange.request_headers.get("user-agent", ""),
        }
        return Arrival(f"{scope['method']} {self._route}", attributes, answered)


def _shown(headers: Headers) -> tuple[str, ...]:
    """What the caller shows: ``authorization``, and each ``x-api-key`` that is not the same key once more."""
    shown = headers.getlist("authorization")
    keys = [f"Bearer {key}" for key in headers.getlist("x-api-key") if key]
    return (*shown, *(key for key in keys if key not in shown))


async def refuse(exchange: Exchange, error: Error, calls: Calls) -> None:
    """Answer what is no call of any method."""
    code, path = error.code.name, exchange.request.url.path
    calls.refused(RequestRefused("http", exchange.request_id, path, exchange.peer, code, error.reason))
    await send_error(exchange, error)


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
    await exchange.send_json(exchange.error_body(error), exchange.convention.status_of(error))
