"""Training on the default base: tokens/s by precision, alone and beside 16 streams, and what the streams see of it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from statistics import quantiles
from typing import Any

import torch

from loramux_server.core.jobs import TrainCommand, TrainEvent, TrainEventType, TrainRow, TrainSpec
from loramux_server.data.rows_file import HELD_OUT, TRAIN, find_rows, write_rows
from loramux_server.engine.transport.protocol import Output
from loramux_server.store.state_dir import JOBS

from ..systems.engine import InlineSystem
from ..workloads import cells
from .engines import engine

STREAMS = "base@16"
WAYS: dict[str, dict[str, Any]] = {"float32": {"training_dtype": "float32"}, "auto": {}}
SHARES = (0.3, 0.5)
"""Of the engine's time for training, beside streams."""
SECONDS = 8.0
"""Of each measurement, after a job's first step."""
SHAPE, QUICK_SHAPE = (8, 512), (2, 16)
"""Rows of an optimizer step, and tokens of a row."""


def measure(device: torch.device, quick: bool) -> Iterator[dict[str, dict[str, float]]]:
    """Figures so far by precision, and for each share of training beside streams."""
    seconds, shape = (0.5, QUICK_SHAPE) if quick else (SECONDS, SHAPE)
    (cell,) = cells([STREAMS], 1, 64 if quick else 2000)
    found: dict[str, dict[str, float]] = {}
    speeds: dict[str, float] = {}

    def alone(system: InlineSystem, scratch: Path) -> dict[str, float]:
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        rate, _ = _train(system, _command(scratch, *shape), seconds)
        peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
        return {"tokens_per_second": rate, "peak_bytes": float(peak)}

    def beside(system: InlineSystem, scratch: Path) -> dict[str, float]:
        system.begin(cell.asks()[: cell.concurrency], endless=True)
        gaps = _turns(system, seconds / 2)
        rate, with_job = _train(system, _command(scratch, *shape), seconds)
        return {
            "tokens_per_second": rate,
            "kept": rate / speeds["auto"],
            **_p95("", with_job),
            **_p95("without_", gaps),
        }

    for way, changes in list(WAYS.items())[1 if quick else 0 :]:
        # Nothing is served meanwhile, so there is no need of graphs.
        with engine(device, [cell], {"cuda_graphs": False, **changes}) as given:
            found[way] = alone(*given)
        speeds[way] = found[way]["tokens_per_second"]
        yield found
    for share in SHARES[: 1 if quick else None]:
        with engine(device, [cell], {"training_share": share}) as given:
            found[f"auto, {STREAMS}, share {share}"] = beside(*given)
        yield found


def _command(scratch: Path, count: int, length: int) -> TrainCommand:
    """A job that goes on for longer than anybody measures."""
    folder = scratch / JOBS / "job"
    folder.mkdir(parents=True)
    rows = [TrainRow(tuple(3 + (7 * i + n) % 1000 for i in range(length)), (True,) * length) for n in range(count)]
    write_rows(folder, {TRAIN: rows, HELD_OUT: []}, b"")
    spec = TrainSpec(rank=16, alpha=32.0, batch_size=count, max_steps=1_000_000)
    return TrainCommand("job", spec, find_rows(folder), output=str(scratch / "out"))


def _train(system: InlineSystem, command: TrainCommand, seconds: float) -> tuple[float, list[float]]:
    """Tokens a second of a job between its steps, over at least ``seconds``, and the time of each turn meanwhile."""
    ends: list[tuple[float, float]] = []  # time, tokens trained so far

    def take(output: Output) -> None:
        if output.failure is not None:
            raise output.failure.error()
        if isinstance(output.payload, TrainEvent) and output.payload.type is TrainEventType.STEP:
            ends.append((time.perf_counter(), output.payload.metrics["trained_tokens"]))

    system.submit(command, take)
    while len(ends) < 2:  # kernels are chosen in the first
        system.turn()
    begin, turns = len(ends) - 1, list[float]()
    while len(ends) < begin + 2 or ends[-1][0] - ends[begin][0] < seconds:
        turns += _turns(system, 0.0)
    (from_time, from_tokens), (to_time, to_tokens) = ends[begin], ends[-1]
    return (to_tokens - from_tokens) / (to_time - from_time), turns


def _turns(system: InlineSystem, seconds: float) -> list[float]:
    """Seconds of each turn, at least one: between two tokens of a stream, where there are streams."""
    found: list[float] = []
    started = time.perf_counter()
    while not found or time.perf_counter() - started < seconds:
        before = time.perf_counter()
        system.turn()
        found.append(time.perf_counter() - before)
    return found


def _p95(prefix: str, seconds: list[float]) -> dict[str, float]:
    return {f"{prefix}gap_p95_ms": 1e3 * quantiles(seconds, n=20)[-1] if len(seconds) > 1 else 1e3 * seconds[0]}
