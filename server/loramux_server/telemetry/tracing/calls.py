"""The span of each call of a door: a server span in OpenTelemetry's words."""

from __future__ import annotations

from opentelemetry.trace import Span, SpanKind, StatusCode, Tracer

from ...core.errors import Code
from ...core.observing.observer import CallFinished, CallSpan
from ...core.observing.tracing import Arrival, Attributes, TraceContext
from .contexts import context_of, named

LONGEST_VALUE = 256
"""Characters of an attribute whose value a caller chooses."""
FAULTS = frozenset(
    code.name for code in (Code.DEADLINE_EXCEEDED, Code.UNIMPLEMENTED, Code.INTERNAL, Code.UNAVAILABLE, Code.DATA_LOSS)
)
"""Codes with which a span is an error of the server; any other is the caller's, as OpenTelemetry has it."""


class ServerSpans:
    """Begins a span for each call, whose parent is the caller's span where it names one."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    def begin(self, arrival: Arrival, parent: TraceContext | None) -> CallSpan:
        return _ServerSpan(
            self._tracer.start_span(arrival.name, context_of(parent), SpanKind.SERVER, _short(arrival.attributes))
        )


class _ServerSpan:
    def __init__(self, span: Span) -> None:
        self._span = span
        self.context = named(span.get_span_context())

    def end(self, event: CallFinished, answer: Attributes) -> None:
        span = self._span
        if span.is_recording():
            span.set_attributes({**answer, "loramux.request.id": event.request_id, "loramux.method": event.method})
            if event.call is not None:
                span.set_attribute("loramux.tenant", event.call.principal.tenant)
            if event.code != "OK":
                span.set_attribute("error.type", event.code)
                if event.reason:
                    span.set_attribute("loramux.reason", event.reason)
            if event.code in FAULTS:
                span.set_status(StatusCode.ERROR)
        span.end()


def _short(attributes: Attributes) -> Attributes:
    """Without what is empty, and each value no longer than may be."""
    return {
        key: value[:LONGEST_VALUE] if isinstance(value, str) else value for key, value in attributes.items() if value
    }
