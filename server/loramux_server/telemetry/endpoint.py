"""The port that Prometheus scrapes, served by a thread of its own so that a scrape never waits for the loop."""

from __future__ import annotations

from threading import Thread
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, start_http_server

from ..host.ports import cannot_serve_metrics


class MetricsEndpoint:
    """An HTTP server for one registry. Port 0 takes a free port; ``port`` then tells which."""

    def __init__(self, registry: CollectorRegistry, host: str, port: int) -> None:
        self._registry = registry
        self._host = host
        self.port = port
        self._running: tuple[WSGIServer, Thread] | None = None

    def start(self) -> None:
        """Listen. Raises ``Error`` FAILED_PRECONDITION when the port is taken or the host is not ours."""
        try:
            self._running = start_http_server(self.port, self._host, registry=self._registry)
        except OSError as error:
            raise cannot_serve_metrics(self._host, self.port, error.strerror or str(error)) from error
        self.port = self._running[0].server_port

    def stop(self) -> None:
        """Stop listening and wait for the thread to end. Takes up to half a second; fine to call twice."""
        if self._running is not None:
            server, thread = self._running
            self._running = None
            server.shutdown()
            server.server_close()
            thread.join()
