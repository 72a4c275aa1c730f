"""What is checked of a request's headers before anything else is looked at."""

from __future__ import annotations

from collections.abc import Callable

from starlette.types import ASGIApp, Receive, Scope, Send

from ...core.errors import Code, Error
from ...services.common.calls import Calls
from .endpoint import refuse
from .exchange import Exchange
from .limits import Limits

FRAMING = {b"content-length", b"transfer-encoding"}
BETWEEN = len(": \r\n")
LIVENESS = "/health/live"
"""Answered in any crowd: whoever opens connections must not have the server restarted."""


class HeadGuard:
    """Refuses headers that no request of good will has, and ends the connection: what follows is not to be trusted.

    ``connections`` gives how many there are; requests on more than the limit are refused, but for liveness.
    """

    def __init__(self, application: ASGIApp, limits: Limits, connections: Callable[[], int], calls: Calls) -> None:
        self._application, self._limits, self._connections = application, limits, connections
        self._calls = calls

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            if self._connections() > self._limits.max_connections and scope["path"] != LIVENESS:
                what = f"the server has more than {self._limits.max_connections} connections; try again soon"
                raise Error(Code.UNAVAILABLE, what, reason="TOO_MANY_CONNECTIONS", retry_after=1.0)
            check_head(scope, self._limits.max_head)
        except Error as error:
            exchange = Exchange(scope, receive, send, self._limits)
            exchange.headers["connection"] = "close"
            await refuse(exchange, error, self._calls)
        else:
            await self._application(scope, receive, send)


def check_head(scope: Scope, most: int) -> None:
    """Refuse headers that are too large, or that say in two ways where the body ends.

    Raises RESOURCE_EXHAUSTED beyond ``most`` bytes; INVALID_ARGUMENT for a request with content-length and
    transfer-encoding: where a proxy believes the other one, part of its body becomes a request of its own.
    """
    headers: list[tuple[bytes, bytes]] = scope["headers"]
    size = len(scope["raw_path"]) + len(scope["query_string"])
    if size + sum(len(name) + len(value) + BETWEEN for name, value in headers) > most:
        raise Error(
            Code.RESOURCE_EXHAUSTED,
            f"the request's line and headers have more than {most} bytes; send fewer or shorter headers",
            reason="HEADERS_TOO_LARGE",
        )
    if {name for name, _ in headers} >= FRAMING:
        what = "the request has content-length and transfer-encoding; send one of them"
        raise Error(Code.INVALID_ARGUMENT, what, reason="MALFORMED")
