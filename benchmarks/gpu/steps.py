"""Decode steps of the engine's own loop on the default base: milliseconds by load, weights and graphs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from ..profile_step import timed
from ..workloads import cells
from .engines import engine

LOADS = ("base@1", "base@16", "base@64", "adapters@16", "stacks@16", "stacks@64")
STEPS = 20
WAYS: dict[str, dict[str, Any]] = {
    "auto": {},
    "packed": {"gpu_weights": "packed", "cpu_weights": "packed"},
    "without graphs": {"cuda_graphs": False},
}


def measure(device: torch.device, quick: bool) -> Iterator[dict[str, dict[str, float]]]:
    """Milliseconds of a step by way and load, so far. An engine for each way: starting one takes longer than a load."""
    found: dict[str, dict[str, float]] = {}
    steps = 3 if quick else STEPS
    wanted = cells(LOADS[:1] if quick else LOADS, 1, 4 * steps + 64)
    for way, changes in list(WAYS.items())[: 1 if quick else None]:
        found[way] = {}
        with engine(device, wanted, changes) as (system, _):
            for cell in wanted:
                system.begin(cell.asks()[: cell.concurrency])
                timed(system, steps)  # graphs are captured when they are first needed
                found[way][cell.name] = 1e3 * timed(system, steps)
                yield found
                system.clear()
