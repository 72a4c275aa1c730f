"""The port that Prometheus scrapes, served by threads of its own so that a scrape never waits for the loop."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import Any

from prometheus_client import CollectorRegistry, make_wsgi_app

from ..core.errors import Code, Error
from ..host.certificates import CertificateFiles
from ..host.ports import cannot_serve_metrics
from ..host.tls import TlsContext
from .scrapes import ScrapeServer

FOR_ROUTERS = "/metrics/vllm"
"""Path of the gauges that routers read."""
LEAST_TOKEN = 16
"""Characters."""


class MetricsEndpoint:
    """An HTTP server for the metrics, and at ``/metrics/vllm`` for the gauges that routers read.

    Port 0 takes a free port; ``port`` then tells which.
    With ``certificate`` it speaks TLS, and with ``token``, the file of a bearer token, it answers 401 to whoever does
    not show it. The files are read again when they change.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        for_routers: CollectorRegistry,
        host: str,
        port: int,
        *,
        certificate: CertificateFiles | None = None,
        token: Path | None = None,
    ) -> None:
        """Raises ``Error`` FAILED_PRECONDITION for a token that cannot be used."""
        self._metrics, self._for_routers = make_wsgi_app(registry), make_wsgi_app(for_routers)
        self._host = host
        self.port = port
        self._certificate = certificate
        self._token = None if token is None else ScrapeToken(token)
        self._running: tuple[ScrapeServer, Thread] | None = None

    def start(self) -> None:
        """Listen. Raises ``Error`` FAILED_PRECONDITION when the port is taken or the host is not ours."""
        context = TlsContext(self._certificate) if self._certificate else None
        try:
            server = ScrapeServer(self._host, self.port, self._answer, context)
        except OSError as error:
            raise cannot_serve_metrics(self._host, self.port, error.strerror or str(error)) from error
        thread = Thread(target=server.serve_forever, name="metrics", daemon=True)
        thread.start()
        self._running = server, thread
        self.port = server.server_port

    def stop(self) -> None:
        """Stop listening and wait for the thread to end. Takes up to half a second; fine to call twice."""
        if self._running is not None:
            server, thread = self._running
            self._running = None
            server.shutdown()
            server.server_close()
            thread.join()

    def _answer(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        if self._token is not None and not self._token.is_shown(environ.get("HTTP_AUTHORIZATION", "")):
            start("401 Unauthorized", [("WWW-Authenticate", "Bearer"), ("Content-Type", "text/plain")])
            return [b"The metrics ask for the bearer token of --metrics-token.\n"]
        page = self._for_routers if environ.get("PATH_INFO") == FOR_ROUTERS else self._metrics
        return page(environ, start)


class ScrapeToken:
    """The token in a file, as last read. Raises ``Error`` FAILED_PRECONDITION for one that cannot be used."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._value = read_token(path)

    def is_shown(self, authorization: str) -> bool:
        """Whether a header shows the token. A file that cannot be used any more leaves the token as it was."""
        with suppress(Error):
            self._value = read_token(self._path)
        scheme, _, value = authorization.partition(" ")
        right = hmac.compare_digest(value.strip().encode("utf-8", "replace"), self._value)
        return right and scheme.lower() == "bearer"


def read_token(path: Path) -> bytes:
    """The token that a file holds. Raises ``Error`` FAILED_PRECONDITION, whose sentence names the flag and the file."""
    try:
        value = path.read_bytes().strip()
    except OSError as error:
        raise _unusable(f"cannot read {path}: {error.strerror}") from None
    if len(value) < LEAST_TOKEN or not all(33 <= byte <= 126 for byte in value):
        raise _unusable(f"{path} must hold {LEAST_TOKEN} or more printable ASCII characters without spaces")
    return value


def _unusable(told: str) -> Error:
    return Error(Code.FAILED_PRECONDITION, f"--metrics-token: {told}", reason="METRICS_TOKEN_UNUSABLE")
