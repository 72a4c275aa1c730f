"""Spans of a whole server with both doors, at a real collector: what is in the tree, who decides, and what may fail."""

from __future__ import annotations

import asyncio
import json
import logging
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator, MutableMapping
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

import grpc
import httpx2
import pytest
import structlog
from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from loramux import AsyncClient, Client, JobFailed, LoramuxError
from loramux.v1 import inference_pb2, inference_pb2_grpc
from loramux_server.app.app import App
from loramux_server.app.embedded import running_app
from loramux_server.config import Settings
from loramux_server.core.backend import SequenceTimes
from loramux_server.core.errors import Code, Error
from loramux_server.telemetry.tracing import provider
from tests.collector import Collector, Span, collecting
from tests.unit.services.adapter_files import write_adapter
from tests.unit.services.fakes import FakeBackend, Script, engine_info
from tests.unit.services.scripted_training import ScriptedTraining
from tests.unit.services.tiny_tokenizer import write_tokenizer

TIMES = SequenceTimes(waiting=0.02, loading=0.015, prefill=0.01, decode=0.03, preempted=2)
TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = f"00-{TRACE}-{SPAN}-01"
SERVER, INTERNAL = 2, 1
GENERATE = "loramux.v1.InferenceService/Generate"


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as found:
        yield found


@pytest.fixture
def backend(tmp_path: Path) -> FakeBackend:
    info = engine_info(400, tokenizer_path=str(write_tokenizer(tmp_path / "tokenizer")))
    return FakeBackend(info, script=lambda _: Script((5, 6, 7), times=TIMES))


class Kept(logging.Handler):
    """Keeps what reaches the logs; pytest's own handlers see what does not, too."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@pytest.fixture
def logged() -> Iterator[list[str]]:
    root, kept = logging.getLogger(), Kept()
    root.addHandler(kept)
    yield kept.messages
    root.removeHandler(kept)


@asynccontextmanager
async def serving(
    tmp_path: Path, backend: FakeBackend, endpoint: str | None, **given: Any
) -> AsyncIterator[tuple[App, httpx2.AsyncClient]]:
    """A server that has the adapters ``acme`` and ``formal``; what it recorded is at the collector when it is gone."""
    settings = Settings(
        state_dir=tmp_path / "state",
        listen="127.0.0.1:0",
        http_listen="127.0.0.1:0",
        metrics_listen="off",
        drain_timeout=0.01,
        otlp_traces_endpoint=endpoint,
        **given,
    )
    async with running_app(settings, backend) as app, AsyncClient(app.address) as client:
        for name in ("acme", "formal"):
            if not (tmp_path / name).exists():
                await client.adapters.upload(name, write_adapter(tmp_path / name, backend.info))
        async with httpx2.AsyncClient(base_url=f"http://{app.doors[1].address}", timeout=20) as raw:
            yield app, raw


async def stream_grpc(app: App, *metadata: tuple[str, str], **fields: Any) -> None:
    asked = inference_pb2.GenerateRequest(prompt="secret prompt", **fields)
    asked.adapters.add(adapter="acme", weight=1.0)
    asked.adapters.add(adapter="formal", weight=0.5)
    async with grpc.aio.insecure_channel(app.address) as channel:
        stub: Any = inference_pb2_grpc.InferenceServiceStub(channel)
        assert [chunk async for chunk in stub.Generate(asked, metadata=metadata)]


async def stream_http(raw: httpx2.AsyncClient, **headers: str) -> None:
    body = {"model": "acme+formal:0.5", "messages": [{"role": "user", "content": "secret prompt"}], "stream": True}
    answer = await raw.post("/v1/chat/completions", json=body, headers=headers)
    assert answer.status_code == 200, answer.text
    assert "[DONE]" in answer.text


def check_tree(collector: Collector, call: Span, operation: str) -> Span:
    """The spans of a streamed generation under the call's; gives that of the request."""
    (request,) = collector.below(call).values()
    assert request.name == f"{operation} acme+formal"
    assert (call.kind, request.kind) == (SERVER, INTERNAL)
    stretches = collector.below(request)
    assert sorted(stretches) == ["decode", "prefill", "queue"]
    load = collector.below(stretches["queue"])["adapter load"]
    queue, prefill, decode = (stretches[name] for name in ("queue", "prefill", "decode"))
    assert call.begin <= request.begin <= queue.begin == load.begin
    assert (queue.end, prefill.end) == (prefill.begin, decode.begin)
    assert request.end <= call.end
    for span, seconds in ((queue, 0.02), (load, 0.015), (prefill, 0.01), (decode, 0.03)):
        assert span.seconds == pytest.approx(seconds, abs=1e-6)
    attributes = request.attributes
    assert attributes.pop("gen_ai.response.time_to_first_chunk") > 0
    assert attributes == {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": "loramux",
        "gen_ai.request.model": "acme+formal",
        "gen_ai.response.model": "acme@1+formal@1:0.5",
        "gen_ai.response.id": call.attributes["loramux.request.id"],
        "gen_ai.request.max_tokens": attributes["gen_ai.request.max_tokens"],
        "gen_ai.request.temperature": attributes["gen_ai.request.temperature"],
        "gen_ai.request.top_p": 1.0,
        "gen_ai.usage.input_tokens": attributes["gen_ai.usage.input_tokens"],
        "gen_ai.usage.output_tokens": 3,
        "gen_ai.response.finish_reasons": ["length"],
        "loramux.adapters": ["acme@1:1", "formal@1:0.5"],
        "loramux.tenant": "default",
        "loramux.code": "OK",
        "loramux.preemptions": 2,
    }
    assert attributes["gen_ai.usage.input_tokens"] > 0
    assert not any(span.failed for span in (call, request, *stretches.values()))
    return request


@pytest.mark.parametrize("protocol", ["grpc", "http"])
async def test_a_generation_is_a_tree_of_spans_over_both_doors_and_both_protocols(
    collector: Collector, backend: FakeBackend, tmp_path: Path, protocol: str
) -> None:
    endpoint = collector.grpc if protocol == "grpc" else collector.http
    chosen = "auto" if protocol == "grpc" else "http/protobuf"
    async with serving(tmp_path, backend, endpoint, otlp_traces_protocol=chosen) as (app, raw):
        await stream_grpc(app, ("traceparent", PARENT), ("tracestate", "congo=t61"), request_id="mine")
        await stream_http(raw, **{"user-agent": "x" * 1000})
    call = collector.one(GENERATE)
    assert (call.trace, call.parent, call.state) == (TRACE, SPAN, "congo=t61")
    assert call.attributes == {
        "rpc.system.name": "grpc",
        "rpc.method": GENERATE,
        "rpc.response.status_code": "OK",
        "loramux.request.id": "mine",
        "loramux.method": "Generate",
        "loramux.tenant": "default",
    }
    assert (call.resource["service.name"], "service.version" in call.resource) == ("loramux", True)
    check_tree(collector, call, "text_completion")

    call = collector.one("POST /v1/chat/completions")
    assert call.parent == ""
    assert call.trace != TRACE
    assert call.attributes == {
        "http.request.method": "POST",
        "http.route": "/v1/chat/completions",
        "http.response.status_code": 200,
        "url.path": "/v1/chat/completions",
        "url.scheme": "http",
        "network.protocol.version": "1.1",
        "user_agent.original": "x" * 256,
        "loramux.request.id": call.attributes["loramux.request.id"],
        "loramux.method": "createChatCompletion",
        "loramux.tenant": "default",
    }
    check_tree(collector, call, "chat")
    assert "secret" not in repr(collector.spans)


async def test_scores_and_embeddings_have_spans(collector: Collector, backend: FakeBackend, tmp_path: Path) -> None:
    async with serving(tmp_path, backend, collector.grpc) as (app, raw):
        async with AsyncClient(app.address) as client:
            await client.score("secret", " text", adapters="acme")
        answer = await raw.post("/v1/embeddings", json={"model": "base", "input": ["secret", "texts"]})
        assert answer.status_code == 200
    score, embedding = collector.one("score acme"), collector.one("embeddings base")
    assert score.attributes["gen_ai.usage.output_tokens"] > 0
    assert (embedding.attributes["loramux.adapters"], embedding.attributes["loramux.code"]) == ([], "OK")
    assert collector.below(collector.one("POST /v1/embeddings")) == {embedding.name: embedding}


async def test_the_parent_decides_and_else_the_ratio(
    collector: Collector, backend: FakeBackend, tmp_path: Path
) -> None:
    not_sampled = f"00-{TRACE}-{SPAN}-00"
    async with serving(tmp_path, backend, collector.grpc, trace_sample_ratio=1.0) as (app, raw):
        await stream_grpc(app, ("traceparent", not_sampled))
        await stream_http(raw, traceparent=not_sampled)
    assert not [span for span in collector.spans if TRACE in (span.trace, span.parent)]
    assert {span.name for span in collector.spans} == {"loramux.v1.AdapterService/UploadAdapter"}
    collector.spans.clear()
    async with serving(tmp_path, backend, collector.grpc, trace_sample_ratio=0.0) as (app, raw):
        await stream_grpc(app)
        await stream_http(raw)
        assert collector.spans == []
        await stream_http(raw, traceparent=PARENT)
    check_tree(collector, collector.one("POST /v1/chat/completions"), "chat")
    assert {span.trace for span in collector.spans} == {TRACE}


async def test_hostile_parents_are_ignored_and_logged_nowhere(
    collector: Collector, backend: FakeBackend, tmp_path: Path, logged: list[str]
) -> None:
    hostile = (
        {"traceparent": "00-" + "z" * 900, "tracestate": "congo=1"},
        {"traceparent": PARENT, "tracestate": "\x7f,=,=="},
    )
    async with serving(tmp_path, backend, collector.grpc) as (app, raw):
        for headers in hostile:
            await stream_http(raw, **headers)
        await stream_grpc(app, ("traceparent", PARENT.replace("-", "_")))
    first, second = sorted(collector.named("POST /v1/chat/completions"), key=lambda span: span.begin)
    assert (first.parent, first.state) == ("", "")
    assert (second.parent, second.state) == (SPAN, "")
    assert collector.one(GENERATE).parent == ""
    assert not logged


async def test_calls_that_fail_say_how(collector: Collector, backend: FakeBackend, tmp_path: Path) -> None:
    async with serving(tmp_path, backend, collector.grpc) as (app, raw), AsyncClient(app.address) as client:
        with pytest.raises(LoramuxError):
            await client.generate("x", adapters="absent")
        body = {"model": "base", "prompt": "x"}
        assert (await raw.post("/v1/completions", json={**body, "max_tokens": -1})).status_code == 400
        backend.script = lambda _: Script((5,), raises=Error(Code.UNAVAILABLE, "the engine is gone"), times=TIMES)
        assert (await raw.post("/v1/completions", json=body)).status_code == 503
        backend.script = lambda _: Script((5,), hang=True, times=TIMES)
        asked = asyncio.create_task(client.generate("x"))
        await backend.hanging.wait()
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
        with pytest.raises(LoramuxError):
            await client.generate("x", timeout=0.2)
    calls = {span.attributes.get("error.type"): span for span in collector.spans if span.kind == SERVER}
    assert (calls["NOT_FOUND"].failed, calls["NOT_FOUND"].attributes["loramux.reason"]) == (False, "ADAPTER_NOT_FOUND")
    assert calls["NOT_FOUND"].attributes["rpc.response.status_code"] == "NOT_FOUND"
    assert not collector.below(calls["NOT_FOUND"])
    refused = calls["INVALID_ARGUMENT"]
    assert (refused.failed, refused.attributes["http.response.status_code"]) == (False, 400)
    lost = calls["UNAVAILABLE"]
    assert (lost.failed, lost.attributes["http.response.status_code"]) == (True, 503)
    (request,) = collector.below(lost).values()
    assert (request.failed, request.attributes["error.type"]) == (True, "UNAVAILABLE")
    assert sorted(collector.below(request)) == ["prefill", "queue"]
    for code, failed in (("CANCELLED", False), ("DEADLINE_EXCEEDED", True)):
        assert calls[code].failed is failed
        assert calls[code].attributes["rpc.response.status_code"] == code
        (request,) = collector.below(calls[code]).values()
        assert (request.failed, request.attributes["error.type"]) == (True, code)


async def test_a_job_is_in_the_trace_of_the_call_that_created_it_also_after_a_restart(
    collector: Collector, backend: FakeBackend, tmp_path: Path
) -> None:
    backend.training = training = ScriptedTraining(backend.info, hang=True, at=2)
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"question {i}", "completion": "yes"}) + "\n" for i in range(9)))
    async with serving(tmp_path, backend, collector.grpc) as (app, raw), AsyncClient(app.address) as client:
        dataset = await client.datasets.upload(rows)
        body = {"name": "acme", "dataset_id": dataset.id, "settings": {"validation_split": 0.3}}
        answer = await raw.post("/loramux.v1.TrainingService/CreateJob", json=body, headers={"traceparent": PARENT})
        assert answer.status_code == 200, answer.text
        id = answer.json()["id"]
        await training.waiting.wait()
    backend.training = ScriptedTraining(backend.info)
    async with serving(tmp_path, backend, collector.grpc) as (app, _), AsyncClient(app.address) as client:
        await (await client.jobs.get(id)).wait()
    call = collector.one("POST /loramux.v1.TrainingService/CreateJob")
    assert (call.trace, call.parent) == (TRACE, SPAN)
    spans = sorted((span for span in collector.spans if span.parent == call.id), key=lambda span: span.begin)
    assert {span.attributes["loramux.job.id"] for span in spans} == {id}
    told = [(span.name, span.attributes["loramux.job.attempt"], span.attributes["loramux.job.next"]) for span in spans]
    assert told == [
        ("job validate", 0, "queued"),
        ("job queue", 1, "running"),
        ("job train", 1, "queued"),
        ("job queue", 2, "running"),
        ("job train", 2, "evaluating"),
        ("job evaluate", 2, "publishing"),
        ("job publish", 2, "succeeded"),
    ]
    assert all(before.end <= after.begin for before, after in pairwise(spans))
    assert all(span.end >= span.begin for span in spans)
    assert spans[-1].attributes["loramux.job.adapter"] == "acme@2"
    assert not any(span.failed for span in spans)


async def test_a_failed_job_says_so(collector: Collector, backend: FakeBackend, tmp_path: Path) -> None:
    wrong = Error(Code.FAILED_PRECONDITION, "the loss is not finite", reason="LOSS_NOT_FINITE")  # type: ignore[arg-type]
    backend.training = ScriptedTraining(backend.info, at=2, error=wrong)
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "a", "completion": "b"}\n' * 3)
    async with serving(tmp_path, backend, collector.grpc) as (app, _), AsyncClient(app.address) as client:
        job = await client.jobs.create("acme", rows)
        with pytest.raises(JobFailed):
            await job.wait()
    span = collector.one("job train")
    assert (span.failed, span.attributes["error.type"]) == (True, "LOSS_NOT_FINITE")
    assert span.attributes["loramux.job.next"] == "failed"


class Heard:
    """A processor of structlog that keeps the lines about a collector."""

    def __init__(self, collector: str) -> None:
        self._collector = collector
        self.lines: list[dict[str, Any]] = []
        self.outage = threading.Event()

    def __call__(self, logger: object, method: str, event: MutableMapping[str, Any]) -> NoReturn:
        if event.get("endpoint") == self._collector:
            self.lines.append(dict(event))
            self.outage.set()
        raise structlog.DropEvent


@pytest.mark.parametrize("up", [True, False])
async def test_a_collector_that_hangs_or_is_down_costs_spans_and_nothing_else(
    collector: Collector,
    backend: FakeBackend,
    tmp_path: Path,
    logged: list[str],
    monkeypatch: pytest.MonkeyPatch,
    up: bool,
) -> None:
    """Calls are answered, the stop takes as long as is promised, and one line tells of it."""
    endpoint = collector.grpc if up else "grpc://127.0.0.1:9"
    for name, value in (("SCHEDULE_DELAY", "20"), ("MAX_QUEUE_SIZE", "16"), ("MAX_EXPORT_BATCH_SIZE", "8")):
        monkeypatch.setenv(f"OTEL_BSP_{name}", value)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    monkeypatch.setattr(provider, "CLOSE_SECONDS", 0.2)
    structlog.configure(processors=[heard := Heard(endpoint.removeprefix("grpc://"))])
    collector.hold.clear()
    try:
        async with serving(tmp_path, backend, endpoint) as (_, raw):
            for _ in range(10):
                await stream_http(raw)
            assert await asyncio.to_thread(heard.outage.wait, 30)
            await stream_http(raw)
            stopping = time.monotonic()
        assert time.monotonic() - stopping < 5
    finally:
        structlog.reset_defaults()
    (line,) = heard.lines
    assert line["event"] == "traces cannot be sent"
    assert line["spans_lost"] >= 1
    assert ("DEADLINE_EXCEEDED" if up else "UNAVAILABLE") in line["why"]
    assert collector.came.is_set() is up
    assert set(logged) <= {"Queue full, dropping Span."}


def test_without_a_collector_nothing_of_opentelemetry_is_imported() -> None:
    program = (
        "import sys; import loramux_server.app.app; from loramux_server.config import Settings;"
        "from loramux_server.app.tracing import open_tracing; assert open_tracing(Settings()) is None;"
        "assert not [name for name in sys.modules if name.startswith('opentelemetry')]"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


@pytest.mark.parametrize("kind", [AsyncClient, Client])
async def test_the_client_continues_the_trace_of_the_application(
    collector: Collector, backend: FakeBackend, tmp_path: Path, kind: type[AsyncClient] | type[Client]
) -> None:
    """Its active span is the parent; without one the call is a root."""

    async def ask(app: App) -> None:
        if kind is AsyncClient:
            async with AsyncClient(app.address) as client:
                await client.generate("x")
            return

        def block() -> None:
            with Client(app.address) as client:
                client.generate("x")

        await asyncio.to_thread(block)

    async with serving(tmp_path, backend, collector.grpc) as (app, _):
        with trace.use_span(NonRecordingSpan(SpanContext(int(TRACE, 16), int(SPAN, 16), False, TraceFlags(1)))):
            await ask(app)
        await ask(app)
    first, second = sorted(collector.named("loramux.v1.InferenceService/GenerateOnce"), key=lambda span: span.begin)
    assert (first.trace, first.parent) == (TRACE, SPAN)
    assert (second.trace != TRACE, second.parent) == (True, "")
