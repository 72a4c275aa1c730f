"""Requests that come and go, so that most steps have a prompt in them: with whole steps as graphs, and without.

Also the kernels that a layer takes in a decode step, with the fused ones between its products and without.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from ..profile_step import timed
from ..samples import summarise
from ..systems.engine import InlineSystem
from ..workloads import cells
from .engines import engine

LOADS = ("base@16", "base@64", "stacks@16")
TOKENS = 32
"""Of an answer: short ones, so that new prompts keep coming."""
ROUNDS = 4
"""Requests of each stream."""
WAYS: dict[str, dict[str, Any]] = {"graphs": {}, "without graphs": {"cuda_graphs": False}}


def measure(device: torch.device, quick: bool) -> Iterator[dict[str, dict[str, Any]]]:
    """So far, by way and load.

    Tokens/s, median seconds to the first token, the 95th percentile of gaps, and steps by kind.
    """
    found: dict[str, dict[str, Any]] = {}
    wanted = cells(("base@1",) if quick else LOADS, 1 if quick else ROUNDS, 4 if quick else TOKENS)
    for way, changes in list(WAYS.items())[: 1 if quick else None]:
        found[way] = {}
        with engine(device, wanted, changes) as (system, _):
            kinds = _count_steps(system)
            for cell in wanted:
                asyncio.run(system.run(cell.warm_up(), cell.concurrency))
                kinds.clear()
                samples, seconds = asyncio.run(system.run(cell.asks(), cell.concurrency))
                figures = summarise(samples, seconds)
                found[way][cell.name] = {
                    "tokens/s": figures.tokens_per_second,
                    "seconds to the first token": figures.first_p50,
                    "gap p95": figures.gap_p95,
                    "steps": dict(kinds),
                }
                yield found
            if device.type == "cuda" and way == "without graphs":
                system.begin(wanted[0].asks()[: wanted[0].concurrency])
                found["kernels of a layer"] = _kernels(system)
                yield found
                system.clear()


def _count_steps(system: InlineSystem) -> Counter[str]:
    """Counts the steps of an engine by kind from now on."""
    kinds: Counter[str] = Counter()
    runner = system._engine.runner
    run = runner.run

    def counted(plan: Any, *more: Any) -> Any:
        kinds[plan.kind] += 1
        return run(plan, *more)

    runner.run = counted  # type: ignore[assignment, method-assign]
    return kinds


def _kernels(system: InlineSystem) -> dict[str, float]:
    """CUDA kernels of an eager decode step, divided by layers, with the fused kernels and without."""
    decoder = system._engine.runner.base.fused
    if decoder is None:
        return {}
    counts = {}
    for way, kernels in (("fused", decoder.kernels), ("torch's", None)):
        decoder.kernels = kernels
        timed(system, 2)
        with profile(activities=[ProfilerActivity.CUDA]) as trace:
            timed(system, 1)
        launched = sum(event.device_type.name == "CUDA" for event in trace.events())
        counts[way] = launched / len(decoder.layers)
    return counts
