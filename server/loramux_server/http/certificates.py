"""The names in clients' certificates, brought from the connection to the requests that it carries."""

from __future__ import annotations

import asyncio
import ssl
from typing import Any

from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

_KEY = "loramux.certificate_names"


class NamedProtocol(H11Protocol):
    """HTTP/1.1 as uvicorn speaks it, with each request knowing whose connection it came on."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        names, app = _names(transport.get_extra_info("ssl_object")), self.app

        async def named(scope: Scope, receive: Receive, send: Send) -> None:
            scope[_KEY] = names
            await app(scope, receive, send)

        self.app = named


def certificate_names(scope: Scope) -> tuple[str, ...]:
    """Subject alternative names of the client's certificate, each ``DNS:NAME`` or ``URI:NAME``."""
    names: tuple[str, ...] = scope.get(_KEY, ())
    return names


def _names(connection: ssl.SSLObject | None) -> tuple[str, ...]:
    found: Any = connection.getpeercert() if connection is not None else None  # empty: none was asked for
    return tuple(f"{kind}:{name}" for kind, name in (found or {}).get("subjectAltName", ()) if kind in ("DNS", "URI"))
