"""The span of each generation, score and embedding, with the stretches that it spent in the engine below it.

All of them are made when the request ends, from the times that the engine gives: nothing is done while it runs. Names
of attributes are those of OpenTelemetry's conventions for generative AI; ``loramux.`` begins the others.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import pairwise

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import SpanKind, StatusCode, Tracer
from opentelemetry.util.types import AttributeValue

from ...core.backend import SequenceTimes
from ...core.observing.observer import NullObserver, RequestFinished
from ...core.types import BASE_NAME, model_name
from .contexts import context_of, nanoseconds

PROVIDER = "loramux"
OPERATIONS = {"score": "score", "embed": "embeddings"}
"""What methods are called; a generation is ``chat`` or ``text_completion``."""


class RequestSpans(NullObserver):
    """An observer that makes the spans of each request whose call is traced."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    def request_finished(self, event: RequestFinished) -> None:
        parent = None if event.call is None else event.call.trace
        if parent is None or not parent.sampled:
            return
        end = time.time_ns()
        begin = end - nanoseconds(event.duration)
        attributes = {name: value for name, value in _attributes(event) if value is not None}
        span = self._tracer.start_span(
            f"{attributes['gen_ai.operation.name']} {attributes['gen_ai.request.model']}",
            context_of(parent),
            SpanKind.INTERNAL,
            attributes,
            start_time=begin,
        )
        if event.code != "OK":
            span.set_attribute("error.type", attributes["loramux.code"])
            span.set_status(StatusCode.ERROR)
        if event.times is not None:
            # A generation is sent piece by piece, and its last may wait for a slow reader; other answers end at once.
            answered = event.time_to_first_token is None
            sent = end - nanoseconds(_total(event.times)) if answered else begin + nanoseconds(event.preparation)
            self._stretches(trace.set_span_in_context(span, Context()), event.times, sent)
        span.end(end)

    def _stretches(self, parent: Context, times: SequenceTimes, sent: int) -> None:
        stretches = ("queue", times.waiting), ("prefill", times.prefill), ("decode", times.decode)
        moments = [sent]
        for _, seconds in stretches:
            moments.append(moments[-1] + nanoseconds(seconds))
        for (name, seconds), (begin, end) in zip(stretches, pairwise(moments), strict=True):
            if not seconds:
                continue
            span = self._tracer.start_span(name, parent, start_time=begin)
            if name == "queue" and times.loading:
                inside = trace.set_span_in_context(span, Context())
                load = self._tracer.start_span("adapter load", inside, start_time=begin)
                load.end(begin + nanoseconds(times.loading))
            span.end(end)


def _total(times: SequenceTimes) -> float:
    return times.waiting + times.prefill + times.decode


def _attributes(event: RequestFinished) -> Iterator[tuple[str, AttributeValue | None]]:
    """Never a prompt or an answer. None: left out."""
    entries = event.stack.entries
    yield "gen_ai.operation.name", OPERATIONS.get(event.method) or ("chat" if event.chat else "text_completion")
    yield "gen_ai.provider.name", PROVIDER
    yield "gen_ai.request.model", "+".join(entry.adapter.name for entry in entries) or BASE_NAME
    yield "gen_ai.response.model", model_name(entries)
    yield "gen_ai.response.id", event.request_id
    yield "gen_ai.usage.input_tokens", event.prompt_tokens
    yield "gen_ai.usage.output_tokens", event.completion_tokens
    yield "gen_ai.usage.cache_read.input_tokens", event.cached_tokens or None
    yield "gen_ai.response.finish_reasons", [str(reason) for reason in event.finish_reasons] or None
    yield "gen_ai.response.time_to_first_chunk", event.time_to_first_token
    yield "loramux.adapters", [entry.text for entry in entries]
    yield "loramux.tenant", event.tenant
    yield "loramux.code", event.code
    if event.times is not None:
        yield "loramux.preemptions", event.times.preempted or None
    if event.sampling is not None:
        yield from _sampling(event)


def _sampling(event: RequestFinished) -> Iterator[tuple[str, AttributeValue | None]]:
    sampling = event.sampling
    assert sampling is not None
    yield "gen_ai.request.max_tokens", sampling.max_tokens
    yield "gen_ai.request.temperature", sampling.temperature
    yield "gen_ai.request.top_p", sampling.top_p
    yield "gen_ai.request.top_k", sampling.top_k or None
    yield "gen_ai.request.choice.count", event.choices if event.choices > 1 else None
