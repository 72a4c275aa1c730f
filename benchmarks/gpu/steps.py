"""Decode steps of the engine's own loop on the default base: milliseconds by load, weights and graphs."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..job import Job
from ..material import BASES, prepare
from ..profile_step import timed
from ..systems.engine import InlineSystem, settings_of, versions_of
from ..workloads import cells

LOADS = ("base@1", "base@16", "base@64", "adapters@16", "stacks@16", "stacks@64")
STEPS = 20
WAYS: dict[str, dict[str, Any]] = {
    "auto": {},
    "packed": {"gpu_weights": "packed", "cpu_weights": "packed"},
    "without graphs": {"cuda_graphs": False},
}


def measure(device: torch.device, quick: bool) -> dict[str, dict[str, float]]:
    """Milliseconds of a step by way and load."""
    base = prepare(BASES[0], Path(__file__).parents[2] / "build" / "bench")
    found: dict[str, dict[str, float]] = {}
    steps = 3 if quick else STEPS
    wanted = cells(LOADS[:1] if quick else LOADS, 1, 4 * steps + 64)
    for way, changes in list(WAYS.items())[: 1 if quick else None]:
        found[way] = {}
        for cell in wanted:
            with tempfile.TemporaryDirectory(prefix="loramux-bench-") as scratch:
                job = Job("inline", base, (cell,), "auto", torch.get_num_threads(), scratch, device.type)  # type: ignore[arg-type]
                system = InlineSystem(replace(settings_of(job), **changes), versions_of(job))
                system.begin(cell.asks()[: cell.concurrency])
                timed(system, steps)  # graphs are captured when they are first needed
                found[way][cell.name] = 1e3 * timed(system, steps)
                system.close()
    return found
