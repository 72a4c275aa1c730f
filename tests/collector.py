"""A collector of spans: OTLP over gRPC and over HTTP, as OpenTelemetry's own takes it, in the test's process."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue


@dataclass(frozen=True)
class Span:
    """A span as it was sent. Moments in nanoseconds since the epoch; ``parent`` is empty for a root."""

    name: str
    trace: str
    id: str
    parent: str
    kind: int
    begin: int
    end: int
    attributes: dict[str, Any]
    failed: bool
    state: str
    resource: dict[str, Any] = field(repr=False)

    @property
    def seconds(self) -> float:
        return (self.end - self.begin) / 1e9


class Collector:
    """``grpc`` and ``http`` are its endpoints, ``spans`` what came; ``hold`` makes it slow until it is set."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.came = threading.Event()
        self.hold = threading.Event()
        self.hold.set()
        self.grpc = self.http = ""

    def take(self, request: ExportTraceServiceRequest) -> None:
        self.came.set()
        self.hold.wait()
        for resource in request.resource_spans:
            of = values(resource.resource.attributes)
            for each in (span for scope in resource.scope_spans for span in scope.spans):
                self.spans.append(
                    Span(
                        each.name,
                        each.trace_id.hex(),
                        each.span_id.hex(),
                        each.parent_span_id.hex(),
                        each.kind,
                        each.start_time_unix_nano,
                        each.end_time_unix_nano,
                        values(each.attributes),
                        each.status.code == each.status.STATUS_CODE_ERROR,
                        each.trace_state,
                        of,
                    )
                )

    def one(self, name: str) -> Span:
        """The only span of this name."""
        (found,) = self.named(name)
        return found

    def named(self, name: str) -> list[Span]:
        return [span for span in self.spans if span.name == name]

    def below(self, parent: Span) -> dict[str, Span]:
        """The children of a span, by name."""
        children = [span for span in self.spans if span.parent == parent.id]
        assert all(child.trace == parent.trace for child in children)
        found = {child.name: child for child in children}
        assert len(found) == len(children), children
        return found


@contextmanager
def collecting() -> Iterator[Collector]:
    """A collector on loopback."""
    collector = Collector()

    class Traces(TraceServiceServicer):
        def Export(self, request: ExportTraceServiceRequest, context: object) -> ExportTraceServiceResponse:
            collector.take(request)
            return ExportTraceServiceResponse()

    class Post(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.path == "/v1/traces" and self.headers["content-type"] == "application/x-protobuf":
                collector.take(ExportTraceServiceRequest.FromString(body))
                answer, status = ExportTraceServiceResponse().SerializeToString(), 200
            else:
                answer, status = b"", 404
            self.send_response(status)
            self.send_header("content-type", "application/x-protobuf")
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: object) -> None: ...

    server = grpc.server(ThreadPoolExecutor(4))
    add_TraceServiceServicer_to_server(Traces(), server)
    collector.grpc = f"grpc://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    http = ThreadingHTTPServer(("127.0.0.1", 0), Post)
    collector.http = f"http://127.0.0.1:{http.server_port}"
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    try:
        yield collector
    finally:
        collector.hold.set()
        server.stop(0).wait()
        http.shutdown()
        http.server_close()
        thread.join()


def values(pairs: Iterable[KeyValue]) -> dict[str, Any]:
    """Attributes as plain values."""
    return {pair.key: _plain(pair.value) for pair in pairs}


def _plain(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_plain(each) for each in value.array_value.values]
    return None if kind is None else getattr(value, kind)
