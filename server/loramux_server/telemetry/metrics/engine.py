"""The engine's stats as metrics, read when Prometheus asks rather than pushed at every step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import accumulate

from prometheus_client.core import Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from ...core.backend import EngineStats
from ..labels import OTHER, adapter_label
from . import catalog
from .declarations import CounterMetric, GaugeMetric, SummaryMetric
from .reading import Reading, used_last

Simple = CounterMetric | GaugeMetric
GRAMMAR_RESULTS = ("compiled", "refused", "lost")
OUT_OF_MEMORY_KINDS = ("errors", "micro_batches", "jobs", "steps")


class EngineCollector(Collector):
    """Turns readings into metrics. ``read`` is called on the scrape's thread, and gives None without an engine."""

    def __init__(self, read: Callable[[], Reading | None]) -> None:
        self._read = read

    def describe(self) -> Iterator[Metric]:
        # Registration asks for the names; an empty answer keeps it from collecting before there is an engine.
        return iter(())

    def collect(self) -> Iterator[Metric]:
        reading = self._read()
        if reading is not None:
            yield from engine_metrics(reading)


def engine_metrics(reading: Reading) -> Iterator[Metric]:
    """The metrics of one reading, in base units."""
    stats, device = reading.stats, reading.info.device
    yield _one(catalog.RUNNING, stats.running)
    yield _one(catalog.WAITING, stats.waiting)
    yield _one(catalog.PREEMPTIONS, stats.preemptions)
    yield _one(catalog.DRAFT_TOKENS, stats.draft_tokens)
    yield _one(catalog.ACCEPTED_TOKENS, stats.accepted_tokens)
    yield _queue_waits(stats)
    yield _sums(catalog.STEPS, stats.steps)
    yield _one(catalog.KV_USAGE, stats.kv_pages_used / stats.kv_pages_total if stats.kv_pages_total else 0.0)
    yield _one(catalog.PREFIX_HITS, stats.prefix_hit_tokens)
    yield _each(catalog.STEP_LIMITS, stats.step_limits)
    yield _each(catalog.OUT_OF_MEMORY, {kind: stats.out_of_memory.get(kind, 0) for kind in OUT_OF_MEMORY_KINDS})
    yield _one(catalog.SUSPENDED_JOBS, len(stats.suspended_jobs))
    if stats.cuda_graphs is not None:
        yield _one(catalog.CUDA_GRAPHS, stats.cuda_graphs)
        yield _one(catalog.CUDA_GRAPH_FAILURES, stats.cuda_graph_failures)
    yield _each(catalog.GRAMMARS, {result: stats.grammars.get(result, 0) for result in GRAMMAR_RESULTS})
    yield _one(catalog.GRAMMAR_RESTARTS, stats.grammars.get("restarts", 0))
    yield from _memory(stats, device)
    yield _each(catalog.ADAPTERS, {tier: len(digests) for tier, digests in stats.resident.items()})
    yield _residents(reading)
    yield _each(catalog.ADAPTER_BYTES, stats.resident_bytes)
    yield _sums(catalog.ADAPTER_LOADS, stats.adapter_loads)
    yield _each(catalog.ADAPTER_HITS, stats.adapter_hits)
    yield _one(catalog.ADAPTER_EVICTIONS, stats.adapter_evictions)


def _memory(stats: EngineStats, device: str) -> Iterator[Metric]:
    kinds = {kind: size for kind, size in stats.memory.items() if kind != "process"}
    yield _each(catalog.MEMORY, kinds, device)
    if "process" in stats.memory:
        yield _one(catalog.ENGINE_MEMORY, stats.memory["process"])
    if (gpu := stats.gpu) is not None:
        yield _each(catalog.GPU_ALLOCATOR, {"allocated": gpu.allocated, "reserved": gpu.reserved}, device)
        if gpu.other_processes is not None:
            yield _each(catalog.GPU_OTHERS, {device: gpu.other_processes})
        if gpu.utilization is not None:
            yield _each(catalog.GPU_UTILIZATION, {device: gpu.utilization})


def _residents(reading: Reading) -> Metric:
    family = catalog.RESIDENT.family()
    for tier, digests in sorted(reading.stats.resident.items()):
        named = {digest: reading.names.get(digest, ()) for digest in used_last(reading.stats, tier)}
        for name in sorted({version.name for versions in named.values() for version in versions}):
            family.add_metric([adapter_label(name), tier], 1)
        if nameless := len(digests) - sum(map(bool, named.values())):
            family.add_metric([OTHER, tier], nameless)
    return family


def _one(metric: Simple, value: float) -> Metric:
    family = metric.family()
    family.add_metric([], value)
    return family


def _each(metric: Simple, values: Mapping[str, float], *before: str) -> Metric:
    """By the last label; ``before``: values of those before it."""
    family = metric.family()
    for label, value in sorted(values.items()):
        family.add_metric([*before, label], value)
    return family


def _sums(metric: SummaryMetric, values: Mapping[str, tuple[int, float]]) -> Metric:
    family = metric.family()
    for label, (count, total) in sorted(values.items()):
        family.add_metric([label], count_value=count, sum_value=total)
    return family


def _queue_waits(stats: EngineStats) -> Metric:
    family = catalog.QUEUE_WAIT.family()
    if stats.queue_waits:
        bounds = [*map(floatToGoString, catalog.QUEUE_WAIT.bounds), "+Inf"]
        buckets = list(zip(bounds, accumulate(stats.queue_waits), strict=True))
        family.add_metric([], buckets, sum_value=stats.queue_wait_seconds)
    return family
