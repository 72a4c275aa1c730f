"""The engine's stats as metrics, read when Prometheus asks rather than pushed at every step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import accumulate

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
    SummaryMetricFamily,
)
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from ..core.backend import QUEUE_WAIT_BOUNDS, EngineStats


class EngineCollector(Collector):
    """Turns the latest :class:`EngineStats` into metrics. ``fetch`` gives None while there is no engine.

    ``fetch`` is called on the thread that serves the scrape.
    """

    def __init__(self, fetch: Callable[[], EngineStats | None], device: Callable[[], str]) -> None:
        self._fetch = fetch
        self._device = device

    def describe(self) -> Iterator[Metric]:
        # Registration asks for the names; an empty answer keeps it from collecting before there is an engine.
        return iter(())

    def collect(self) -> Iterator[Metric]:
        stats = self._fetch()
        if stats is not None:
            yield from engine_metrics(stats, self._device())


def engine_metrics(stats: EngineStats, device: str) -> Iterator[Metric]:
    """The metrics of one reading, in base units."""
    yield GaugeMetricFamily("loramux_requests_running", "Generations in the batch.", value=stats.running)
    yield GaugeMetricFamily("loramux_requests_waiting", "Generations that wait for a place.", value=stats.waiting)
    usage = stats.kv_pages_used / stats.kv_pages_total if stats.kv_pages_total else 0.0
    yield GaugeMetricFamily("loramux_kv_cache_usage_ratio", "Share of the key-value pages in use, 0 to 1.", value=usage)
    memory = GaugeMetricFamily(
        "loramux_vram_bytes", "Memory by kind: of the GPU, or of the host on a CPU.", labels=["device", "kind"]
    )
    for kind, size in sorted(stats.memory.items()):
        memory.add_metric([device, kind], size)
    yield memory
    resident = GaugeMetricFamily("loramux_adapters_resident", "Adapter versions in memory.", labels=["tier"])
    for tier, digests in sorted(stats.resident.items()):
        resident.add_metric([tier], len(digests))
    yield resident
    sizes = GaugeMetricFamily("loramux_adapter_bytes", "Bytes of the adapter versions in memory.", labels=["tier"])
    for tier, size in sorted(stats.resident_bytes.items()):
        sizes.add_metric([tier], size)
    yield sizes
    loads = SummaryMetricFamily(
        "loramux_adapter_load_duration_seconds",
        "Loads of adapter versions: from disk to the host, from the host to the device.",
        labels=["tier"],
    )
    for tier, (count, seconds) in sorted(stats.adapter_loads.items()):
        loads.add_metric([tier], count_value=count, sum_value=seconds)
    yield loads
    hits = CounterMetricFamily(
        "loramux_adapter_hits", "Where the adapters of requests were when these came.", labels=["tier"]
    )
    for tier, found in sorted(stats.adapter_hits.items()):
        hits.add_metric([tier], found)
    yield hits
    yield CounterMetricFamily(
        "loramux_adapter_evictions", "Adapter versions dropped to make room.", value=stats.adapter_evictions
    )
    yield CounterMetricFamily("loramux_preemptions", "Generations put back to be recomputed.", value=stats.preemptions)
    yield CounterMetricFamily(
        "loramux_prefix_cache_hit_tokens", "Prompt tokens taken from the prefix cache.", value=stats.prefix_hit_tokens
    )
    steps = SummaryMetricFamily("loramux_step_duration_seconds", "Engine steps and their time.", labels=["kind"])
    for step_kind, (count, seconds) in sorted(stats.steps.items()):
        steps.add_metric([step_kind], count_value=count, sum_value=seconds)
    yield steps
    waits = HistogramMetricFamily(
        "loramux_queue_wait_seconds", "From a generation's arrival in the engine to its first step."
    )
    if stats.queue_waits:
        bounds = [*map(floatToGoString, QUEUE_WAIT_BOUNDS), "+Inf"]
        waits.add_metric(
            [], list(zip(bounds, accumulate(stats.queue_waits), strict=True)), sum_value=stats.queue_wait_seconds
        )
    yield waits
    grammars = CounterMetricFamily(
        "loramux_grammars",
        "Grammars of structured output: compiled, refused, or lost with the process that held them.",
        labels=["result"],
    )
    for result in ("compiled", "refused", "lost"):
        grammars.add_metric([result], stats.grammars.get(result, 0))
    yield grammars
    yield CounterMetricFamily(
        "loramux_grammar_restarts",
        "New starts of the process that grammars are forked from.",
        value=stats.grammars.get("restarts", 0),
    )
    if stats.cuda_graphs is not None:
        yield GaugeMetricFamily(
            "loramux_cuda_graphs", "Decode graphs kept; 0: capturing failed.", value=stats.cuda_graphs
        )
