"""W3C trace context of calls: the server's spans join the application's trace."""

from __future__ import annotations

import sys


def trace_headers() -> tuple[tuple[str, str], ...]:
    """``traceparent`` of the application's active span; nothing where it does not use OpenTelemetry."""
    if "opentelemetry.trace" not in sys.modules:
        return ()
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    headers: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(headers)
    return tuple(headers.items())
