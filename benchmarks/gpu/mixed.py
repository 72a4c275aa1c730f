"""Requests that come and go, so that most steps have a prompt in them: with whole steps as graphs, and without.

Also the kernels that a layer takes in a decode step, with the fused ones between its products and without.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from ..job import Job
from ..material import BASES, prepare
from ..profile_step import timed
from ..samples import summarise
from ..systems.engine import InlineSystem, settings_of, versions_of
from ..workloads import cells

LOADS = ("base@16", "base@64", "stacks@16")
TOKENS = 32
"""Of an answer: short ones, so that new prompts keep coming."""
ROUNDS = 4
"""Requests of each stream."""
WAYS: dict[str, dict[str, Any]] = {"graphs": {}, "without graphs": {"cuda_graphs": False}}


def measure(device: torch.device, quick: bool) -> dict[str, dict[str, Any]]:
    """By way and load: tokens/s, median seconds to the first token, the 95th percentile of gaps, and steps by kind."""
    base = prepare(BASES[0], Path(__file__).parents[2] / "build" / "bench")
    found: dict[str, dict[str, Any]] = {}
    wanted = cells(("base@1",) if quick else LOADS, 1 if quick else ROUNDS, 4 if quick else TOKENS)
    for way, changes in list(WAYS.items())[: 1 if quick else None]:
        found[way] = {}
        for cell in wanted:
            with tempfile.TemporaryDirectory(prefix="loramux-bench-") as scratch:
                job = Job("inline", base, (cell,), "auto", torch.get_num_threads(), scratch, device.type)  # type: ignore[arg-type]
                system = InlineSystem(replace(settings_of(job), **changes), versions_of(job))
                asyncio.run(system.run(cell.warm_up(), cell.concurrency))
                kinds: Counter[str] = Counter()
                runner = system._engine.runner
                run = runner.run

                def counted(plan: Any, *more: Any) -> Any:
                    kinds[plan.kind] += 1  # noqa: B023
                    return run(plan, *more)  # noqa: B023

                runner.run = counted  # type: ignore[assignment, method-assign]
                samples, seconds = asyncio.run(system.run(cell.asks(), cell.concurrency))
                figures = summarise(samples, seconds)
                found[way][cell.name] = {
                    "tokens/s": figures.tokens_per_second,
                    "seconds to the first token": figures.first_p50,
                    "gap p95": figures.gap_p95,
                    "steps": dict(kinds),
                }
                if device.type == "cuda" and cell is wanted[0] and way == "without graphs":
                    system.begin(cell.asks()[: cell.concurrency])
                    found["kernels of a layer"] = _kernels(system)
                system.close()
    return found


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
