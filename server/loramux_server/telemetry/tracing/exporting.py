"""How spans are sent: OTLP over gRPC or HTTP, as the settings and OpenTelemetry's own variables say."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from urllib.parse import urlsplit, urlunsplit

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from ...core.errors import invalid_field
from ...core.observing.outage import Outage
from ...host.urls import why_no_endpoint
from ..logs import get_logger
from .variables import ENDPOINTS, named_endpoint

logger = get_logger(__name__)

GRPC, HTTP = "grpc", "http/protobuf"
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
INSECURE = ("OTEL_EXPORTER_OTLP_TRACES_INSECURE", "OTEL_EXPORTER_OTLP_INSECURE")
TRACES_PATH = "/v1/traces"
HTTP_PORT = 4318
LONGEST_REASON = 300
"""Characters of what an exporter says."""
ENCRYPTED = {"grpc": False, "http": False, "grpcs": True, "https": True}
"""Schemes of an endpoint, and whether they mean TLS."""


def open_exporter(endpoint: str | None, protocol: str) -> WatchedExporter:
    """An exporter to ``endpoint``, a URL; None: to the one that OpenTelemetry's variables name.

    ``protocol``: ``grpc``, ``http/protobuf``, or ``auto``, which asks the variables, and then port and path. Raises
    INVALID_ARGUMENT.
    """
    named = endpoint or named_endpoint()
    # A flag is checked already. Of variables gRPC's own forms are fine, such as collector:4317 and dns:///collector:4317.
    if endpoint is None and named.partition("://")[0] in ENCRYPTED and (why := why_no_endpoint(named)):
        raise invalid_field(next(name for name in ENDPOINTS if os.environ.get(name)), why)
    return WatchedExporter(_exporter(endpoint, named, _protocol(named, protocol, os.environ)), urlsplit(named).netloc)


def _exporter(endpoint: str | None, named: str, chosen: str) -> SpanExporter:
    scheme = urlsplit(named).scheme
    if chosen == HTTP:
        if scheme in ("grpc", "grpcs"):
            raise invalid_field("--otlp-traces-protocol", f"is {HTTP}, and the endpoint begins with {scheme}://")
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter

        return HttpExporter(endpoint=None if endpoint is None else _with_path(endpoint))
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter

    said = any(os.environ.get(name) for name in INSECURE)
    insecure = None if said or scheme not in ENCRYPTED else not ENCRYPTED[scheme]
    return GrpcExporter(endpoint=endpoint, insecure=insecure)


def _protocol(endpoint: str, protocol: str, environment: Mapping[str, str]) -> str:
    if protocol != "auto":
        return protocol
    for name in PROTOCOLS:
        if found := environment.get(name):
            if found not in (GRPC, HTTP):
                raise invalid_field(name, f"is {found!r}; use {GRPC} or {HTTP}")
            return found
    parts = urlsplit(endpoint)
    return HTTP if parts.port == HTTP_PORT or parts.path.endswith(TRACES_PATH) else GRPC


def _with_path(endpoint: str) -> str:
    """The endpoint with the path of traces, where it has none."""
    parts = urlsplit(endpoint)
    return urlunsplit(parts._replace(path=TRACES_PATH)) if parts.path in ("", "/") else endpoint


class WatchedExporter(SpanExporter):
    """An exporter whose failures are told as an outage: once, at growing intervals, and once when it is over.

    OpenTelemetry's own loggers would tell of every attempt. Spans that could not be sent are lost.
    """

    def __init__(self, exporter: SpanExporter, where: str) -> None:
        self._exporter, self._where = exporter, where
        self._outage = Outage()
        self._lost = 0
        _QUIET.install()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send spans, from the thread that does nothing else."""
        result = self._exporter.export(spans)
        if result is SpanExportResult.SUCCESS:
            _QUIET.outages.discard(id(self))
            if (seconds := self._outage.over()) is not None:
                logger.warning("traces are sent again", after_seconds=round(seconds, 1), spans_lost=self._lost)
                self._lost = 0
            return result
        self._lost += len(spans)
        _QUIET.outages.add(id(self))
        if self._outage.failed():
            logger.warning("traces cannot be sent", endpoint=self._where, why=_QUIET.last, spans_lost=self._lost)
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()
        _QUIET.outages.discard(id(self))

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._exporter.force_flush(timeout_millis)


class _Quiet(logging.Handler):
    """Takes what OpenTelemetry's exporters log, and remembers the last of it.

    That the queue of spans is full, OpenTelemetry tells every 20 seconds at most, and not during an outage.
    """

    LOUD = ("opentelemetry.exporter", "urllib3.connectionpool")
    QUEUE = "opentelemetry.sdk._shared_internal"
    OF_CALLERS = ("opentelemetry.trace.span", "opentelemetry.attributes")
    """They tell of every bad value, and some are the caller's to choose."""

    def __init__(self) -> None:
        super().__init__()
        self._said = threading.local()
        self._latest = ""
        self.outages: set[int] = set()

    @property
    def last(self) -> str:
        """What was said last on this thread: an exporter that was shut down may still try on its own.

        OpenTelemetry says the same once in 20 seconds, on whatever thread: else it is what was said last on any.
        """
        return getattr(self._said, "last", self._latest)

    def install(self) -> None:
        """Begin. A second call does nothing."""
        for name in self.LOUD:
            loud = logging.getLogger(name)
            loud.propagate = False
            if self not in loud.handlers:
                loud.addHandler(self)
        queue = logging.getLogger(self.QUEUE)
        if self._news not in queue.filters:
            queue.addFilter(self._news)
        for name in self.OF_CALLERS:
            logging.getLogger(name).setLevel(logging.CRITICAL)

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(Exception):
            self._said.last = self._latest = record.getMessage()[:LONGEST_REASON]

    def _news(self, record: logging.LogRecord) -> bool:
        return not self.outages


_QUIET = _Quiet()
"""One for the process, as loggers are."""
