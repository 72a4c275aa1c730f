"""The gauges that routers read, compared with the state that they tell of."""

from __future__ import annotations

from dataclasses import replace

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from loramux_server.core.backend import EngineInfo, EngineStats
from loramux_server.telemetry.metrics.reading import NamedVersion, Reading
from loramux_server.telemetry.metrics.vllm import CATALOG, LIKELY_RANK, VllmCollector

INFO = EngineInfo("base", "f00d", "Llama", 10, 20, (1,), "cpu", "float32", 1, {}, "", kv_page_tokens=16)
READING = Reading(
    INFO,
    EngineStats(
        running=3,
        waiting=2,
        kv_pages_used=30,
        kv_pages_total=120,
        resident={"device": ("new", "old"), "host": ("old", "idle", "unpublished")},
        adapters_running={"new": 2},
        adapters_waiting={"idle": 1, "old": 1},
        adapter_rows_used=40,
        adapter_rows_total=100,
    ),
    {
        "new": [NamedVersion("acme", 2, 32, current=True, pinned=True)],
        "old": [NamedVersion("acme", 1, 8, current=False, pinned=False)],
        "idle": [
            NamedVersion("json", 1, 16, current=True, pinned=False),
            NamedVersion("copy-of-json", 4, 16, current=True, pinned=False),
        ],
    },
)


def page(reading: Reading | None) -> dict[str, list[tuple[dict[str, str], float]]]:
    """Labels and value of each sample, by name, as a router parses them."""
    registry = CollectorRegistry()
    registry.register(VllmCollector(lambda: reading, lambda: 1234.5))
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        assert family.type == "gauge"
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def test_every_gauge_is_there_and_no_other() -> None:
    assert page(READING).keys() == {metric.name for metric in CATALOG}


def test_queue_and_cache() -> None:
    found = page(READING)
    served = {"model_name": "base", "engine": "0"}
    assert found["vllm:num_requests_running"] == [(served, 3)]
    assert found["vllm:num_requests_waiting"] == [(served, 2)]
    assert found["vllm:kv_cache_usage_perc"] == found["vllm:gpu_cache_usage_perc"] == [(served, 0.25)]
    assert found["vllm:cache_config_info"] == [({**served, "block_size": "16", "num_gpu_blocks": "120"}, 1)]


def test_adapters_of_requests() -> None:
    [(labels, when)] = page(READING)["vllm:lora_requests_info"]
    assert when == 1234.5
    assert labels["running_lora_adapters"] == "acme"
    assert labels["waiting_lora_adapters"] == "acme@1,copy-of-json,json"
    # Two are there; of rank 32, the largest known, one more fits into 60 rows.
    assert labels["max_lora"] == "3"


def test_adapters_in_memory_by_what_requests_call_them() -> None:
    """The name means version 2; a copy in host memory of what is on the device is not told."""
    found = page(READING)
    loaded = [(x["adapter_name"], x["level"], x["pinned"], x["rank"]) for x, _ in found["vllm:lora_adapter_loaded"]]
    assert loaded == [
        ("acme", "gpu", "true", "32"),
        ("acme@1", "gpu", "false", "8"),
        ("copy-of-json", "cpu", "false", "16"),
        ("json", "cpu", "false", "16"),
    ]
    assert {value for _, value in found["vllm:lora_adapter_loaded"]} == {1}
    counts = [found[f"vllm:{name}_lora_adapters"][0][1] for name in ("num_gpu_loaded", "num_cpu_loaded", "max_gpu")]
    assert counts == [2, 3, 3]


def test_an_empty_server_tells_its_capacity() -> None:
    found = page(Reading(INFO, replace(EngineStats(), adapter_rows_total=10 * LIKELY_RANK + 3)))
    assert found["vllm:max_gpu_lora_adapters"][0][1] == 10
    assert found["vllm:lora_requests_info"][0][0]["running_lora_adapters"] == ""
    assert "vllm:lora_adapter_loaded" not in found


def test_nothing_is_told_without_an_engine() -> None:
    assert page(None) == {}
