"""The server's spans in one piece: what makes them, whether a trace is recorded, and the way to the collector."""

from __future__ import annotations

import asyncio
import threading

from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

from ...core.observing.observer import Observer
from .calls import ServerSpans
from .exporting import open_exporter
from .jobs import JobSpans
from .requests import RequestSpans

SERVICE = "loramux"
CLOSE_SECONDS = 3.0
"""How long a stop waits at most for the collector to take the last spans."""


class Tracing:
    """Makes spans and sends them in the background: a collector that is slow or down costs spans, and nothing else.

    ``endpoint``, ``protocol``: see ``open_exporter``. ``ratio``: the share of traces that are recorded where the
    caller has not decided; None: as ``OTEL_TRACES_SAMPLER`` says, and else all. Raises INVALID_ARGUMENT.
    """

    def __init__(self, endpoint: str | None, protocol: str, ratio: float | None, version: str) -> None:
        self._provider = TracerProvider(
            sampler=None if ratio is None else ParentBased(TraceIdRatioBased(ratio)),
            resource=_resource(version),
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(BatchSpanProcessor(open_exporter(endpoint, protocol)))
        tracer = self._provider.get_tracer(__name__.partition(".")[0], version)
        self.calls = ServerSpans(tracer)
        self.observers: tuple[Observer, ...] = (RequestSpans(tracer), JobSpans(tracer))

    async def close(self) -> None:
        """Send what waits, within ``CLOSE_SECONDS``. Fine to call twice."""
        # A thread of its own, which the process does not wait for: the SDK gives a dead collector half a minute.
        closing = threading.Thread(target=self._provider.shutdown, name="tracing", daemon=True)
        closing.start()
        await asyncio.to_thread(closing.join, CLOSE_SECONDS)


def _resource(version: str) -> Resource:
    """What the spans are of; ``OTEL_SERVICE_NAME`` and ``OTEL_RESOURCE_ATTRIBUTES`` say it better."""
    ours = {"service.name": SERVICE, "service.version": version}
    return Resource.create({**ours, **OTELResourceDetector().detect().attributes})
