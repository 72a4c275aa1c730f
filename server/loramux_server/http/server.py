"""The HTTP server itself: its port, its bounds, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn

from ..api.methods import METHODS as NATIVE_METHODS
from ..config import Address
from ..host.certificates import CertificateFiles
from ..host.ports import bound_socket, cannot_listen, why_not
from ..host.tls import TlsContext, following
from ..services.access.methods import require_all
from ..services.availability import Availability
from ..services.common.calls import LAST_WORDS, Calls
from .exchanges.connection import connection
from .exchanges.heads import HeadGuard
from .exchanges.limits import Limits
from .exchanges.pages import PageGuard, Pages
from .metrics import MetricsPage
from .routes import METHODS, Application, full_name


class HttpServer:
    """The HTTP door. ``takes_everybody`` tells whether no key is needed just now."""

    def __init__(
        self,
        availability: Availability,
        calls: Calls,
        address: Address,
        *,
        certificate: CertificateFiles | None = None,
        limits: Limits | None = None,
        console: bool = True,
        metrics: MetricsPage | None = None,
        pages: Pages | None = None,
        takes_everybody: Callable[[], bool] = lambda: False,
    ) -> None:
        require_all((*map(full_name, METHODS), *NATIVE_METHODS))
        self._address = address
        self.calls = calls
        self._tls = None if certificate is None else TlsContext(certificate, ask_clients=True)
        self._limits = limits = limits or Limits()
        self._application = Application(availability, calls, limits, console=console, metrics=metrics)
        guarded = PageGuard(self._application, pages or Pages(), takes_everybody, limits, calls)
        self._guard = HeadGuard(guarded, limits, self._connections, calls)
        self._server: _Server | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def address(self) -> Address:
        return self._address

    @property
    def openapi(self) -> dict[str, Any]:
        """OpenAPI's document of this door."""
        return self._application.openapi

    @property
    def running(self) -> int:
        return self.calls.running

    async def start(self) -> None:
        """Listen. Afterwards ``address`` has the real port.

        Raises FAILED_PRECONDITION when the port is taken or the host is not ours.
        """
        if why := why_not(*self._address):
            raise cannot_listen(*self._address, why, flag="--http-listen")
        try:
            listener = bound_socket(*self._address)
        except OSError as error:
            raise cannot_listen(*self._address, error.strerror or str(error), flag="--http-listen") from error
        self._address = Address(self._address.host, listener.getsockname()[1])
        tls = self._tls
        config = uvicorn.Config(
            self._guard,
            http=connection(self._limits),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            h11_max_incomplete_event_size=self._limits.max_head,
            timeout_keep_alive=self._limits.keepalive_timeout,
            timeout_graceful_shutdown=int(LAST_WORDS),
            ssl_context_factory=None if tls is None else lambda *_: following(tls),
        )
        self._server = _Server(config)
        self._task = asyncio.create_task(self._server.serve([listener]), name="http")
        await self._server.listening.wait()

    async def set_serving(self, serving: bool) -> None:
        """What health says."""
        self._application.health.serving = serving

    def _connections(self) -> int:
        return 0 if self._server is None else len(self._server.server_state.connections)

    async def drain(self, timeout: float) -> int:
        """Wait up to ``timeout`` seconds for the running calls, then end the rest; gives their number."""
        self._application.health.serving = False
        return await self.calls.drain(timeout)

    async def stop(self) -> None:
        """Stop listening and close all connections. Fine to call twice, and when ``start`` failed."""
        task, self._task = self._task, None
        if task is not None and self._server is not None:
            self._server.should_exit = True
            await task


class _Server(uvicorn.Server):
    """uvicorn in a loop that somebody else runs, whose signals are not its own."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()
        # Its warnings tell of requests that are none: whoever sends them would fill the log.
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()
