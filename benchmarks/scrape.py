"""A server's metrics, as numbers by name."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from urllib.request import ProxyHandler, build_opener

from prometheus_client.parser import text_string_to_metric_families

TIERS = ("device", "host", "disk")
SECONDS = 10.0


def parse(text: str) -> dict[str, float]:
    """``name{tier}`` -> value for samples with a tier, ``name`` -> value for those without labels; others are left."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.labels.keys() <= {"tier"}:
                tier = sample.labels.get("tier")
                found[f"{sample.name}{{{tier}}}" if tier else sample.name] = sample.value
    return found


def since(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """What was added between two readings."""
    return {key: value - before.get(key, 0.0) for key, value in after.items()}


def hit_shares(added: Mapping[str, float]) -> dict[str, float]:
    """Tier -> share of the adapters that requests found there. Empty when there were no requests."""
    hits = {tier: added.get(f"loramux_adapter_hits_total{{{tier}}}", 0.0) for tier in TIERS}
    total = sum(hits.values())
    return {tier: count / total for tier, count in hits.items()} if total else {}


def loads(added: Mapping[str, float], tier: str) -> tuple[int, float]:
    """Loads into a tier, and the seconds that they took together."""
    summary = "loramux_adapter_load_duration_seconds"
    return int(added.get(f"{summary}_count{{{tier}}}", 0)), added.get(f"{summary}_sum{{{tier}}}", 0.0)


async def read(url: str) -> dict[str, float]:
    """The metrics now."""

    def fetch() -> str:
        with build_opener(ProxyHandler({})).open(url, timeout=SECONDS) as answer:  # a server of ours
            return str(answer.read().decode())

    return parse(await asyncio.to_thread(fetch))
