"""The declarations of the metrics, and the page that is made from them."""

from __future__ import annotations

import re

import pytest

from loramux_server.telemetry.metrics import catalog, vllm
from loramux_server.telemetry.metrics.declarations import CounterMetric, Declared
from tools import metrics as page

EVERYTHING = (*catalog.CATALOG, *vllm.CATALOG)
CONTRACT = {
    "loramux_requests_total": ("method", "code"),
    "loramux_request_duration_seconds": ("method", "tenant", "adapter"),
    "loramux_time_to_first_token_seconds": ("tenant", "adapter"),
    "loramux_inter_token_latency_seconds": (),
    "loramux_queue_wait_seconds": (),
    "loramux_prompt_tokens_total": ("tenant", "adapter"),
    "loramux_generated_tokens_total": ("tenant", "adapter"),
    "loramux_requests_running": (),
    "loramux_requests_waiting": (),
    "loramux_kv_cache_usage_ratio": (),
    "loramux_prefix_cache_hit_tokens_total": (),
    "loramux_step_duration_seconds": ("kind",),
    "loramux_adapters_resident": ("tier",),
    "loramux_adapter_resident": ("adapter", "tier"),
    "loramux_adapter_load_duration_seconds": ("tier",),
    "loramux_adapter_evictions_total": (),
    "loramux_vram_bytes": ("device", "kind"),
    "loramux_training_jobs": ("state",),
    "loramux_training_steps_total": (),
    "loramux_training_tokens_total": (),
    "loramux_training_loss": ("job",),
    "loramux_engine_up": (),
    "loramux_engine_restarts_total": (),
}
"""What dashboards of others may rely on."""


def test_the_table_of_metrics_is_fresh() -> None:
    text = page.PAGE.read_text()
    assert page.with_tables(text) == text, "run: python -m tools.metrics"


def test_names_and_labels_that_others_rely_on_stay() -> None:
    declared = {metric.name: metric.labels for metric in catalog.CATALOG}
    assert {name: declared.get(name) for name in CONTRACT} == CONTRACT
    assert "loramux_build_info" in declared


@pytest.mark.parametrize("metric", EVERYTHING, ids=lambda metric: metric.name)
def test_declarations_keep_to_the_conventions(metric: Declared) -> None:
    assert re.fullmatch(r"(loramux_|vllm:)[a-z_]+", metric.name)
    assert isinstance(metric, CounterMetric) == metric.name.endswith("_total")
    if not metric.name.startswith("vllm:"):
        for unit in ("seconds", "bytes", "ratio"):
            bare = metric.name.removesuffix("_total")
            assert bare.endswith(f"_{unit}") == (metric.unit.split(" ")[0] == unit), f"the name tells the unit {unit}"
    assert metric.meaning.endswith((".", "`"))
    assert "|" not in metric.meaning  # it would split the cell


def test_every_name_is_declared_once() -> None:
    names = [metric.name for metric in EVERYTHING]
    assert len(names) == len(set(names))
