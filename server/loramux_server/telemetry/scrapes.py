"""A small HTTP server for scrapes: TLS in the thread of each connection, and bounds on what clients can hold."""

from __future__ import annotations

import socket
import sys
import time
from contextlib import suppress
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from ..host.ports import bound_socket
from ..host.tls import TlsContext
from .logs import get_logger

logger = get_logger(__name__)

MOST_CONNECTIONS = 32
"""At a time; more are closed unanswered."""
LONGEST = 20.0
"""Seconds after which a connection is closed, whatever it does: Prometheus gives up a scrape after 10."""


class ScrapeServer(ThreadingMixIn, WSGIServer):
    """Answers each connection in a thread, for ``LONGEST`` seconds and ``MOST_CONNECTIONS`` at a time."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = MOST_CONNECTIONS

    def __init__(self, host: str, port: int, app: Any, context: TlsContext | None) -> None:
        """Listen. Raises OSError where that cannot be."""
        self._host, self._context = host, context
        self._open: dict[Any, tuple[float, socket.socket]] = {}
        super().__init__((host, port), _Handler)
        self.set_app(app)

    def server_bind(self) -> None:
        self.socket.close()
        self.socket = bound_socket(self._host, self.server_address[1])
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = self._host, self.server_address[1]  # without asking DNS for a name
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        if len(self._open) >= MOST_CONNECTIONS:
            self.shutdown_request(request)
            return
        # A second handle, because TLS takes the first one over.
        self._open[request] = time.monotonic() + LONGEST, request.dup()
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._open.pop(request)[1].close()

    def finish_request(self, request: Any, client_address: Any) -> None:
        if self._context is None:
            super().finish_request(request, client_address)
            return
        with self._context.newest().wrap_socket(request, server_side=True) as secured:
            super().finish_request(secured, client_address)

    def service_actions(self) -> None:
        """End connections that take too long. Called twice a second."""
        now = time.monotonic()
        for deadline, connection in list(self._open.values()):
            if deadline < now:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that break off, or cannot agree on TLS, are no defects."""
        error = sys.exception()
        if not isinstance(error, OSError):
            logger.error("a scrape failed", exc_info=error)


class _Handler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: scrapes come every few seconds."""
