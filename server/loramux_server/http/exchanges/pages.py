"""Which pages of browsers may call: the door's own, and those of origins that the operator names.

A browser sends a page's requests with whatever reaches the server by itself: a network that only this machine is on, a
client's certificate. A page of another site must not use that, so this is decided before anything else is read.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from ...core.errors import Code, Error
from ...services.common.calls import Calls
from .endpoint import refuse
from .exchange import Exchange
from .limits import Limits

PREFLIGHT_SECONDS = 600
"""How long a browser may remember the answer to a preflight."""
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^:\[\]/@\s]+)(:[0-9]{1,5})?")


@dataclass(frozen=True, slots=True)
class Pages:
    """``origins``: exact origins of other sites. ``hosts``: names that the server goes by while it takes everybody."""

    origins: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()


class PageGuard:
    """Refuses what pages of other sites send, before its caller is asked for; the rest goes on to ``application``.

    ``takes_everybody`` tells whether no key is needed just now. A name that an attacker's DNS turned into this
    machine's address would then open the server to a page, so it must be one that is known.
    """

    def __init__(
        self, application: ASGIApp, pages: Pages, takes_everybody: Callable[[], bool], limits: Limits, calls: Calls
    ) -> None:
        self._pages, self._takes_everybody, self._limits, self._calls = pages, takes_everybody, limits, calls
        self._application = application
        if pages.origins:
            self._application = CORSMiddleware(
                application,
                allow_origins=pages.origins,
                allow_methods=("GET", "POST", "DELETE"),
                allow_headers=("*",),
                expose_headers=("*",),
                max_age=PREFLIGHT_SECONDS,
            )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        refusal = self._refusal(Headers(scope=scope))
        if refusal is None:
            await self._application(scope, receive, send)
        else:
            await refuse(Exchange(scope, receive, send, self._limits), refusal, self._calls)

    def _refusal(self, headers: Headers) -> Error | None:
        host = headers.get("host", "").lower()
        if host and self._takes_everybody() and not self._is_known(host):
            what = f"the host {host[:100]!r} is none that this server goes by; name it with --http-allowed-host"
            return Error(Code.PERMISSION_DENIED, f"{what}, or create a key", reason="HOST_REFUSED")
        for origin in headers.getlist("origin"):
            if origin not in self._pages.origins and origin.lower().partition("://")[2] != host:
                what = f"pages of {origin[:100]!r} may not call this server; allow them with --http-cors-origin"
                return Error(Code.PERMISSION_DENIED, what, reason="ORIGIN_REFUSED")
        return None

    def _is_known(self, host: str) -> bool:
        """Whether no DNS of a stranger can have led here by that name: addresses, localhost, what is listed."""
        found = _HOST.fullmatch(host)
        if found is None:
            return False
        name = found[1].rstrip(".")
        if name in self._pages.hosts or name == "localhost" or name.endswith(".localhost"):
            return True
        try:
            ipaddress.ip_address(name.strip("[]"))
        except ValueError:
            return False
        return True
