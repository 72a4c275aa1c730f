"""Metrics: names and units, bounded labels, fresh figures at each scrape, a port that starts and stops cleanly."""

from __future__ import annotations

import shutil
import socket
import subprocess
import urllib.request
from collections.abc import Collection
from dataclasses import replace

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from loramux_server.core.backend import EngineInfo, EngineStats, GpuStats
from loramux_server.core.call import Call
from loramux_server.core.callers.principal import LOCAL, Principal
from loramux_server.core.errors import Code, Error
from loramux_server.core.jobs import JobState, TrainEvent, TrainEventType
from loramux_server.core.observing.observer import CallFinished, JobMoved, RequestStarted
from loramux_server.core.types import BASE, BASE_NAME, AdapterVersion, Stack, StackEntry
from loramux_server.store.adapters.refs import check_name, check_new_name
from loramux_server.store.damage import Kind
from loramux_server.telemetry.endpoint import MetricsEndpoint
from loramux_server.telemetry.labels import NONE, OTHER, names_in, stack_label
from loramux_server.telemetry.metrics.reading import MAX_RESIDENT, NamedVersion, Names
from loramux_server.telemetry.metrics.refusals import MAX_TENANTS
from loramux_server.telemetry.metrics.registry import MAX_JOBS, Metrics

INFO = EngineInfo("base", "f00d", "Llama", 10, 20, (1,), "cuda:0", "float32", 1, {}, "")
STATS = EngineStats(
    running=2,
    waiting=1,
    kv_pages_used=3,
    kv_pages_total=12,
    memory={"base": 1000, "free": 5, "process": 4000},
    gpu=GpuStats(allocated=1200, reserved=1500, other_processes=300, utilization=0.75),
    resident={"device": ("a", "b"), "host": ("b", "c", "d")},
    adapter_evictions=4,
    resident_bytes={"device": 100, "host": 200},
    adapter_loads={"device": (3, 0.5), "host": (2, 1.5)},
    adapter_hits={"device": 7, "host": 1, "disk": 2},
    steps={"decode": (7, 1.5)},
    cuda_graphs=9,
    cuda_graph_failures=2,
    queue_waits=(2, *[0] * 13, 1, 3),
    queue_wait_seconds=700.5,
    grammars={"compiled": 4, "refused": 1, "lost": 2, "restarts": 3},
)


def stack(*names: str) -> Stack:
    return Stack(tuple(StackEntry(AdapterVersion(n, 1, n, 8)) for n in names))


def begin(metrics: Metrics, used: Stack, tenant: str = "default", tokens: int = 5) -> None:
    metrics.request_started(RequestStarted("r", "generate", tenant, used, tokens))


def ended(method: str, seconds: float, call: Call | None) -> CallFinished:
    return CallFinished("grpc", method, "r1", call, "", "OK", "", seconds)


def call(used: Stack | None, tenant: str = "default") -> Call:
    """A call that has come as far as its stack, or not."""
    call = Call("Generate", "r", Principal(tenant, LOCAL.scopes))
    call.subject.stack = used
    return call


def samples(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    text = generate_latest(metrics.registry).decode()
    return {
        (s.name, tuple(sorted(s.labels.items()))): s.value
        for family in text_string_to_metric_families(text)
        for s in family.samples
    }


def value(metrics: Metrics, name: str, **labels: str) -> float:
    return samples(metrics)[name, tuple(sorted(labels.items()))]


def test_tokens_count_by_tenant_and_stack_and_sum_up() -> None:
    metrics = Metrics("0")
    begin(metrics, stack("acme", "formal"))
    metrics.tokens("default", stack("acme", "formal"), 1, None)
    metrics.tokens("default", stack("acme", "formal"), 4, 0.2)
    begin(metrics, BASE)
    metrics.tokens("default", BASE, 1, None)
    assert value(metrics, "loramux_prompt_tokens_total", tenant="default", adapter="acme+formal") == 5
    assert value(metrics, "loramux_generated_tokens_total", tenant="default", adapter="acme+formal") == 5
    assert value(metrics, "loramux_generated_tokens_total", tenant="default", adapter="base") == 1
    # Four tokens in 0.2 s: four gaps of 0.05 s.
    assert value(metrics, "loramux_inter_token_latency_seconds_count") == 4
    assert value(metrics, "loramux_inter_token_latency_seconds_sum") == pytest.approx(0.2)


def test_times_by_tenant_and_stack() -> None:
    metrics = Metrics("0")
    acme = {"tenant": "ann", "adapter": "acme"}
    begin(metrics, stack("acme"), "ann")
    metrics.answered("ann", stack("acme"), 0.03)
    metrics.call_finished(ended("Generate", 0.4, call(stack("acme"), "ann")))
    first = "loramux_time_to_first_token_seconds"
    assert value(metrics, f"{first}_count", **acme) == 1
    assert [value(metrics, f"{first}_bucket", le=le, **acme) for le in ("0.02", "0.04", "+Inf")] == [0, 1, 1]
    assert value(metrics, "loramux_requests_total", method="Generate", code="OK") == 1
    duration = "loramux_request_duration_seconds"
    assert value(metrics, f"{duration}_sum", method="Generate", **acme) == pytest.approx(0.4)
    # The bound is part of its bucket.
    metrics.call_finished(ended("Score", 0.5, call(stack("acme"), "ann")))
    assert value(metrics, f"{duration}_bucket", method="Score", le="0.5", **acme) == 1
    assert value(metrics, f"{duration}_bucket", method="Score", le="0.3", **acme) == 0


def test_the_first_internal_error_is_an_increase() -> None:
    metrics = Metrics("0")
    metrics.seed_methods(["Score"])
    assert value(metrics, "loramux_requests_total", method="Score", code="INTERNAL") == 0
    metrics.call_finished(CallFinished("grpc", "Score", "r1", None, "", "INTERNAL", "", 0.1))
    assert value(metrics, "loramux_requests_total", method="Score", code="INTERNAL") == 1


def test_calls_without_a_stack_have_a_word_of_their_own() -> None:
    """Of those that need none, that were refused before theirs was known, and of callers that are not known."""
    metrics = Metrics("0")
    for known in (call(None), call(None, "ann"), None):
        metrics.call_finished(ended("ListAdapters", 0.1, known))
    none = {"tenant": NONE, "adapter": NONE}
    assert value(metrics, "loramux_request_duration_seconds_count", method="ListAdapters", **none) == 3


def test_field_23_words_of_the_servers_own_are_no_names() -> None:
    """What stands in labels for the bare base and for the rest cannot be published, so it never means an adapter."""
    for word in (OTHER, NONE, BASE_NAME):
        with pytest.raises(Error):
            check_new_name(word)
    assert stack_label(BASE) == BASE_NAME
    # One that was published before the word was the server's own.
    assert stack_label(stack(BASE_NAME)) == "adapter:base"
    with pytest.raises(Error):
        check_name("adapter:base")
    assert [sorted(names_in(label)) for label in ("adapter:base", BASE_NAME, "a+b")] == [["base"], [], ["a", "b"]]


def test_a_stack_has_one_label_whatever_its_order() -> None:
    assert stack_label(stack("b", "a")) == stack_label(stack("a", "b")) == "a+b"


def test_refusals_name_the_tenants_that_are_refused_most() -> None:
    metrics = Metrics("0")
    for i in range(3 * MAX_TENANTS):
        metrics.quota_refused(f"tenant{i}", "requests_per_minute")
    name = "loramux_quota_refusals_total"
    assert value(metrics, name, tenant=OTHER, limit="requests_per_minute") == 2 * MAX_TENANTS
    for _ in range(9):
        metrics.quota_refused("tenant150", "concurrency")
    samples(metrics)  # a scrape, at which places change hands
    metrics.quota_refused("tenant150", "concurrency")
    assert value(metrics, name, tenant="tenant150", limit="concurrency") == 1
    assert sum(each == name for each, _ in samples(metrics)) == MAX_TENANTS + 2


def test_engine_figures_are_read_at_each_scrape() -> None:
    metrics = Metrics("1.2")
    assert not any(name == "loramux_requests_running" for name, _ in samples(metrics))
    current = STATS
    metrics.engine_ready(INFO, lambda: current)
    assert value(metrics, "loramux_requests_running") == 2
    assert value(metrics, "loramux_requests_waiting") == 1
    assert value(metrics, "loramux_kv_cache_usage_ratio") == 0.25
    assert value(metrics, "loramux_vram_bytes", device="cuda:0", kind="base") == 1000
    assert value(metrics, "loramux_adapters_resident", tier="device") == 2
    assert value(metrics, "loramux_adapter_evictions_total") == 4
    assert value(metrics, "loramux_adapter_bytes", tier="host") == 200
    assert value(metrics, "loramux_adapter_load_duration_seconds_count", tier="device") == 3
    assert value(metrics, "loramux_adapter_load_duration_seconds_sum", tier="host") == 1.5
    assert value(metrics, "loramux_adapter_hits_total", tier="disk") == 2
    waits = "loramux_queue_wait_seconds"
    assert [value(metrics, f"{waits}_bucket", le=le) for le in ("0.001", "60.0", "120.0", "+Inf")] == [2, 2, 3, 6]
    assert (value(metrics, f"{waits}_count"), value(metrics, f"{waits}_sum")) == (6, 700.5)
    assert value(metrics, "loramux_grammars_total", result="lost") == 2
    assert value(metrics, "loramux_cuda_graphs") == 9
    assert value(metrics, "loramux_cuda_graph_failures_total") == 2
    assert value(metrics, "loramux_engine_resident_memory_bytes") == 4000
    assert value(metrics, "loramux_gpu_allocator_bytes", device="cuda:0", state="reserved") == 1500
    assert value(metrics, "loramux_gpu_other_processes_bytes", device="cuda:0") == 300
    assert value(metrics, "loramux_gpu_utilization_ratio", device="cuda:0") == 0.75
    assert value(metrics, "loramux_grammar_restarts_total") == 3
    assert value(metrics, "loramux_step_duration_seconds_count", kind="decode") == 7
    assert value(metrics, "loramux_step_duration_seconds_sum", kind="decode") == 1.5
    builds = [dict(labels) for name, labels in samples(metrics) if name == "loramux_build_info"]
    assert [(b["version"], b["base"], b["dtype"]) for b in builds] == [("1.2", "base", "float32")]
    current = replace(STATS, running=9)
    assert value(metrics, "loramux_requests_running") == 9
    metrics.engine_gone()
    assert not any(name == "loramux_requests_running" for name, _ in samples(metrics))


def test_which_adapters_are_resident() -> None:
    """One series by name, whatever tenant or version it is of; contents without a name are counted."""
    metrics = Metrics("0")
    acme, theirs, old = (NamedVersion("acme", v, 8, current=True, pinned=False) for v in (2, 2, 1))
    names = {"a": (acme,), "b": (theirs, NamedVersion("base", 1, 8, current=True, pinned=False)), "c": (old,)}
    asked: list[set[str]] = []

    def look_up(digests: Collection[str]) -> Names:
        asked.append(set(digests))
        return names

    metrics.engine_ready(INFO, lambda: STATS, look_up)
    found = {
        labels: number for (name, labels), number in samples(metrics).items() if name == "loramux_adapter_resident"
    }
    assert {(dict(labels)["adapter"], dict(labels)["tier"]): number for labels, number in found.items()} == {
        ("acme", "device"): 1,
        ("adapter:base", "device"): 1,
        ("acme", "host"): 1,
        ("adapter:base", "host"): 1,
        (OTHER, "host"): 1,
    }
    assert asked == [{"a", "b", "c", "d"}]


def test_resident_adapters_are_bounded_to_those_that_were_used_last() -> None:
    metrics = Metrics("0")
    digests = tuple(f"d{i}" for i in range(5 * MAX_RESIDENT))
    stats = replace(STATS, resident={"host": digests})

    def look_up(asked: Collection[str]) -> Names:
        return {digest: [NamedVersion(f"of-{digest}", 1, 8, current=True, pinned=False)] for digest in asked}

    metrics.engine_ready(INFO, lambda: stats, look_up)
    assert sum(name == "loramux_adapter_resident" for name, _ in samples(metrics)) == MAX_RESIDENT + 1
    assert value(metrics, "loramux_adapter_resident", adapter=f"of-{digests[-1]}", tier="host") == 1
    assert value(metrics, "loramux_adapter_resident", adapter=OTHER, tier="host") == 4 * MAX_RESIDENT


def test_jobs_by_state_and_losses_of_running_jobs_only() -> None:
    metrics = Metrics("0")
    metrics.seed_jobs({JobState.SUCCEEDED: 3})
    move = JobMoved("j", "acme", "default", None, JobState.QUEUED, at=1.0, created=1.0)
    metrics.job_moved(move)
    metrics.job_moved(replace(move, old=JobState.QUEUED, new=JobState.RUNNING))
    assert value(metrics, "loramux_training_jobs", state="running") == 1
    assert value(metrics, "loramux_training_jobs", state="queued") == 0
    metrics.job_event("j", "acme", "default", TrainEvent(TrainEventType.STEP, metrics={"loss": 1.5, "tokens": 40}))
    metrics.job_event("j", "acme", "default", TrainEvent(TrainEventType.MESSAGE, message="hello"))
    assert value(metrics, "loramux_training_loss", job="j") == 1.5
    assert value(metrics, "loramux_training_steps_total") == 1
    assert value(metrics, "loramux_training_tokens_total") == 40
    metrics.job_moved(replace(move, old=JobState.RUNNING, new=JobState.FAILED))
    assert not any(name == "loramux_training_loss" for name, _ in samples(metrics))
    ended = {
        state: value(metrics, "loramux_training_jobs_ended_total", state=state) for state in JobState if state.final
    }
    assert ended == {JobState.SUCCEEDED: 0, JobState.FAILED: 1, JobState.CANCELLED: 0}
    assert value(metrics, "loramux_training_jobs", state="succeeded") == 3
    for i in range(2 * MAX_JOBS):
        metrics.job_event(f"j{i}", "n", "default", TrainEvent(TrainEventType.STEP, metrics={"loss": 1.0}))
    assert sum(name == "loramux_training_loss" for name, _ in samples(metrics)) == MAX_JOBS


def test_every_name_has_the_prefix() -> None:
    metrics = Metrics("0")
    metrics.engine_ready(INFO, lambda: STATS)
    assert all(name.startswith("loramux_") for name, _ in samples(metrics))


@pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool (apt install prometheus)")
def test_promtool_finds_nothing_to_say() -> None:
    metrics = Metrics("0")
    metrics.engine_ready(INFO, lambda: STATS)
    begin(metrics, stack("acme"))
    metrics.answered("default", stack("acme"), 0.1)
    metrics.tokens("default", stack("acme"), 2, 0.1)
    metrics.call_finished(ended("Generate", 0.4, call(stack("acme"))))
    metrics.quota_refused("default", "concurrency")
    page = generate_latest(metrics.registry)
    done = subprocess.run(["promtool", "check", "metrics"], input=page, capture_output=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, b"")


def test_the_endpoint_serves_and_stops() -> None:
    metrics = Metrics("0")
    endpoint = MetricsEndpoint(metrics.registry, metrics.for_routers, "127.0.0.1", 0)
    endpoint.start()
    with urllib.request.urlopen(f"http://127.0.0.1:{endpoint.port}/metrics", timeout=5) as answer:
        assert b"loramux_training_jobs" in answer.read()
    endpoint.stop()
    endpoint.stop()
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", endpoint.port)) != 0


def test_a_taken_port_is_one_clear_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(Error, match=f"127.0.0.1:{port}.*--metrics-listen") as caught:
            MetricsEndpoint(Metrics("0").registry, Metrics("0").for_routers, "127.0.0.1", port).start()
    assert caught.value.code is Code.FAILED_PRECONDITION


def test_field_02_corrupt_objects_are_counted_by_kind() -> None:
    metrics = Metrics("1")
    assert [value(metrics, "loramux_corrupt_objects_total", kind=kind) for kind in Kind] == [0, 0, 0, 0]
    metrics.corrupt_object(Kind.ADAPTER)
    metrics.job_event("j", "acme", "t", TrainEvent(TrainEventType.CHECKPOINT_LOST, "why", step=4))
    assert value(metrics, "loramux_corrupt_objects_total", kind="adapter") == 1
    assert value(metrics, "loramux_corrupt_objects_total", kind="checkpoint") == 1
