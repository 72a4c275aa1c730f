"""Times of short computations on a device, without the host's share where that can be had."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

REPEAT = 20
"""Computations of a trial."""
TRIALS = 5


def seconds(compute: Callable[[], object], device: torch.device, captured: bool = True) -> float:
    """Seconds of one ``compute``, the best of some trials: whatever disturbs a trial makes it longer.

    On a GPU a trial is a graph of several, so that launching is not in it; ``captured=False`` times launches too.
    """
    compute()
    if device.type != "cuda":
        return min(_host(compute) for _ in range(TRIALS))
    if captured:
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize(device)
        with torch.cuda.graph(graph):
            for _ in range(REPEAT):
                compute()
        return min(_events(graph.replay, device) for _ in range(TRIALS)) / REPEAT
    return min(_events(lambda: [compute() for _ in range(REPEAT)], device) for _ in range(TRIALS)) / REPEAT


def _host(compute: Callable[[], object]) -> float:
    begin = time.perf_counter()
    compute()
    return time.perf_counter() - begin


def _events(compute: Callable[[], object], device: torch.device) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    compute()
    end.record()
    torch.cuda.synchronize(device)
    return float(start.elapsed_time(end)) / 1000
