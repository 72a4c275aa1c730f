"""A connection of a client: HTTP/1.1 as uvicorn speaks it, with bounds that uvicorn lacks."""

from __future__ import annotations

import asyncio
import ssl
from functools import partial
from typing import Any

import h11
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from .limits import Limits

_KEY = "loramux.certificate_names"


class Connection(H11Protocol):
    """Each request knows the names in the client's certificate; a connection that brings no request is ended."""

    def __init__(self, limits: Limits, **given: Any) -> None:
        super().__init__(**given)
        self._head_timeout = limits.head_timeout
        self._waiting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        names, app = _names(transport.get_extra_info("ssl_object")), self.app

        async def named(scope: Scope, receive: Receive, send: Send) -> None:
            scope[_KEY] = names
            await app(scope, receive, send)

        self.app = named
        self._watch()

    def data_received(self, data: bytes) -> None:
        try:
            super().data_received(data)
        except h11.LocalProtocolError:  # it is no HTTP, and the answer before it has begun already
            self.transport.abort()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unwatch()
        super().connection_lost(exc)

    def _watch(self) -> None:
        """Give the next request a time to come, however slowly its bytes do: uvicorn waits for ever."""
        answering = self.cycle is not None and not self.cycle.response_complete
        if answering or self.transport.is_closing():
            self._unwatch()
        elif self._waiting is None:
            self._waiting = self.loop.call_later(self._head_timeout, self.transport.abort)

    def _unwatch(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._unwatch()  # silence between two requests has a bound of its own

    def timeout_keep_alive_handler(self) -> None:
        self.transport.close()


def connection(limits: Limits) -> Any:
    """What uvicorn makes connections with."""
    return partial(Connection, limits)


def certificate_names(scope: Scope) -> tuple[str, ...]:
    """Subject alternative names of the client's certificate, each ``DNS:NAME`` or ``URI:NAME``."""
    names: tuple[str, ...] = scope.get(_KEY, ())
    return names


def _names(connection: ssl.SSLObject | None) -> tuple[str, ...]:
    found: Any = connection.getpeercert() if connection is not None else None  # empty: none was asked for
    return tuple(f"{kind}:{name}" for kind, name in (found or {}).get("subjectAltName", ()) if kind in ("DNS", "URI"))
