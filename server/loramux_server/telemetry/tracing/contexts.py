"""Between trace contexts as the server has them and OpenTelemetry's own."""

from __future__ import annotations

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, TraceState

from ...core.observing.tracing import TraceContext


def context_of(parent: TraceContext | None) -> Context:
    """The context in which children of a span are made; of None: roots."""
    if parent is None:
        return Context()
    flags = TraceFlags(TraceFlags.SAMPLED if parent.sampled else TraceFlags.DEFAULT)
    state = TraceState.from_header([parent.state]) if parent.state else None
    ids = int(parent.trace_id, 16), int(parent.span_id, 16)
    return trace.set_span_in_context(NonRecordingSpan(SpanContext(*ids, True, flags, state)), Context())


def named(span: SpanContext) -> TraceContext:
    """A span as the server and others name it."""
    return TraceContext(
        trace.format_trace_id(span.trace_id),
        trace.format_span_id(span.span_id),
        sampled=span.trace_flags.sampled,
        state=span.trace_state.to_header(),
    )


def nanoseconds(seconds: float) -> int:
    """Of a time, or of a moment since the epoch: what spans are measured in."""
    return int(seconds * 1e9)
