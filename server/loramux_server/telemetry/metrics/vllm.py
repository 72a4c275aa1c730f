"""The gauges that routers read, as vLLM spells them: queue, KV cache and which adapters are loaded.

The endpoint picker of Gateway API's inference extension and the scorers of llm-d choose a server by these. A request's
``model`` is what they compare with: ``base``, an adapter's name, or ``name@version`` where the name means another one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from ...core.types import BASE_NAME
from .declarations import GaugeMetric
from .reading import Reading, used_last

SERVED = ("model_name", "engine")
LIKELY_RANK = 16
"""Of the next adapter, where none is loaded to tell."""
LEVELS = {"device": "gpu", "host": "cpu"}


def _gauge(name: str, meaning: str, *labels: str, unit: str = "") -> GaugeMetric:
    return GaugeMetric(name=f"vllm:{name}", meaning=meaning, labels=(*SERVED, *labels), unit=unit)


RUNNING = _gauge("num_requests_running", "Generations in the batch.", unit="generations")
WAITING = _gauge("num_requests_waiting", "Generations that wait for a place in the batch.", unit="generations")
KV_USAGE = _gauge("kv_cache_usage_perc", "Share of the KV pages in use, 0 to 1.", unit="ratio")
OLD_KV_USAGE = _gauge("gpu_cache_usage_perc", "The same, by the name that older routers read.", unit="ratio")
CACHE_CONFIG = _gauge(
    "cache_config_info", "Always 1; tokens of a KV page, and KV pages.", "block_size", "num_gpu_blocks"
)
LORA_REQUESTS = _gauge(
    "lora_requests_info",
    "When it was read; the adapters of requests in the batch and of those that wait, and how many the device takes.",
    "max_lora",
    "running_lora_adapters",
    "waiting_lora_adapters",
    unit="seconds since 1970",
)
LOADED = _gauge(
    "lora_adapter_loaded",
    "1 for each adapter in memory: `gpu` for the device, which may be a CPU, or `cpu` for host memory alone.",
    "adapter_name",
    "level",
    "pinned",
    "rank",
)
ON_DEVICE = _gauge("num_gpu_loaded_lora_adapters", "Adapter versions on the device.", unit="versions")
ON_HOST = _gauge("num_cpu_loaded_lora_adapters", "Adapter versions in host memory.", unit="versions")
MOST_ON_DEVICE = _gauge(
    "max_gpu_lora_adapters",
    "Adapter versions that the device has room for: those there, and as many more of the largest rank that is in use.",
    unit="versions",
)
CATALOG = (
    *(RUNNING, WAITING, KV_USAGE, OLD_KV_USAGE, CACHE_CONFIG),
    *(LORA_REQUESTS, LOADED, ON_DEVICE, ON_HOST, MOST_ON_DEVICE),
)


class VllmCollector(Collector):
    """Turns readings into these gauges. ``read`` is called on the scrape's thread, and gives None without an engine."""

    def __init__(self, read: Callable[[], Reading | None], clock: Callable[[], float] = time.time) -> None:
        self._read, self._clock = read, clock

    def describe(self) -> Iterator[Metric]:
        for metric in CATALOG:
            yield metric.family()

    def collect(self) -> Iterator[Metric]:
        reading = self._read()
        if reading is not None:
            yield from gauges(reading, self._clock())


def gauges(reading: Reading, now: float) -> Iterator[Metric]:
    """The gauges of one reading at the moment ``now``, seconds since the epoch."""
    stats = reading.stats
    usage = stats.kv_pages_used / stats.kv_pages_total if stats.kv_pages_total else 0.0
    yield _family(RUNNING, [((), stats.running)])
    yield _family(WAITING, [((), stats.waiting)])
    yield _family(KV_USAGE, [((), usage)])
    yield _family(OLD_KV_USAGE, [((), usage)])
    yield _family(CACHE_CONFIG, [((str(reading.info.kv_page_tokens), str(stats.kv_pages_total)), 1)])
    most = _capacity(reading)
    asked = (_models(reading, stats.adapters_running), _models(reading, stats.adapters_waiting))
    yield _family(LORA_REQUESTS, [((str(most), *map(",".join, asked)), now)])
    yield _family(LOADED, [(labels, 1) for labels in sorted(_loaded(reading))])
    yield _family(ON_DEVICE, [((), len(stats.resident.get("device", ())))])
    yield _family(ON_HOST, [((), len(stats.resident.get("host", ())))])
    yield _family(MOST_ON_DEVICE, [((), most)])


def _family(metric: GaugeMetric, samples: Iterable[tuple[tuple[str, ...], float]]) -> Metric:
    family = metric.family()
    for labels, value in samples:
        family.add_metric((BASE_NAME, "0", *labels), value)
    return family


def _models(reading: Reading, digests: Iterable[str]) -> list[str]:
    """What requests name to get these versions."""
    return sorted({version.model for digest in digests for version in reading.names.get(digest, ())})


def _loaded(reading: Reading) -> set[tuple[str, ...]]:
    """Label values of the adapters in memory, each with the fastest tier that it is in."""
    on_device = set(reading.stats.resident.get("device", ()))
    return {
        (version.model, level, str(version.pinned).lower(), str(version.rank))
        for tier, level in LEVELS.items()
        for digest in used_last(reading.stats, tier)
        if tier == "device" or digest not in on_device
        for version in reading.names.get(digest, ())
    }


def _capacity(reading: Reading) -> int:
    """Rank rows are not slots: how many more adapters fit depends on their ranks."""
    stats = reading.stats
    ranks = [version.rank for named in reading.names.values() for version in named]
    free = stats.adapter_rows_total - stats.adapter_rows_used
    return len(stats.resident.get("device", ())) + free // max(ranks, default=LIKELY_RANK)
