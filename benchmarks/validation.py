"""What a large dataset costs the streams: tokens between which it is validated, and a job on it is created.

    make bench-validation                               # 200,000 rows, three minutes on two cores
    make bench-validation BENCH_ARGS=--quick            # to see that it runs
    python -m benchmarks.validation --rows 50000 --streams 16 --json FILE

One server, asked over gRPC by this process. Streams run without a pause for one stretch alone, for as long as it takes
to validate the dataset and to create a job on it (``--limit`` at most), and for another stretch alone. The job is
cancelled at once, so that no training is measured. The goal: p95 between tokens beside that work is at most 1.3 times
that of streams alone.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from loramux import AsyncClient
from loramux.types import Dataset
from loramux_server.host.resources import usable_cpus

from .goals import Goal, as_json
from .load import own_server
from .machine import describe, sentence
from .samples import Figures, Sample
from .serving import RESULTS, ROOT, console, prepare
from .streams import keep_streaming, pooled

SLOWER = 1.3
"""Most that p95 between tokens may be, of that of streams alone."""
TOKENS = 64
STRETCH = 20.0
"""Seconds of streams between two looks at whether the work is done."""

Stretches = list[tuple[list[Sample], float]]


def rows(count: int) -> bytes:
    """So many rows of prompt and completion, each another one."""
    made = (
        {"prompt": f"Where is shop {i} of the harbour?", "completion": f" In street {i % 997}, house {i // 997}."}
        for i in range(count)
    )
    return b"".join(json.dumps(row).encode() + b"\n" for row in made)


async def work(client: AsyncClient, data: Path, dataset: Dataset, times: dict[str, float]) -> None:
    """Validate the dataset, create a job on the same data and cancel it; ``times`` gets the seconds of both."""
    begin = time.perf_counter()
    report = await client.datasets.validate(dataset)
    times["validate"] = time.perf_counter() - begin
    if not report.valid:
        raise RuntimeError("the rows are not good")
    begin = time.perf_counter()
    job = await client.train("validation", data, max_steps=1)
    times["create"] = time.perf_counter() - begin
    await job.cancel()


async def measure(
    options: argparse.Namespace, data: Path, flags: Sequence[str]
) -> tuple[Stretches, Stretches, dict[str, float]]:
    """The streams alone, the streams beside the work, and how long its parts took."""
    alone: Stretches = []
    beside: Stretches = []
    times: dict[str, float] = {}
    async with own_server(flags) as address, AsyncClient(address) as client:

        async def stream(mark: str, seconds: float) -> tuple[list[Sample], float]:
            return await keep_streaming(client, options.streams, TOKENS, seconds, mark)

        dataset = await client.datasets.upload(data)
        await stream("warm", 3.0)
        alone.append(await stream("before", options.seconds))
        task = asyncio.create_task(work(client, data, dataset, times))
        begin = time.perf_counter()
        while not task.done() and time.perf_counter() - begin < options.limit:
            beside.append(await stream(f"beside {len(beside)}", STRETCH))
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        alone.append(await stream("after", options.seconds))
    return alone, beside, times


def show(figures: dict[str, Figures], times: dict[str, float], goal: Goal) -> None:
    """Print the table and the goal."""
    table = Table(title="between tokens", title_justify="left")
    for column in ("streams", "tokens/s", "p50", "p95"):
        table.add_column(column, justify="left" if column == "streams" else "right")
    for name, f in figures.items():
        table.add_row(name, f"{f.tokens_per_second:.1f}", *(f"{1000 * t:.1f} ms" for t in (f.gap_p50, f.gap_p95)))
    console.print(table)
    for name in ("validate", "create"):
        took = f"{times[name]:.1f} s" if name in times else "not done within the limit"
        console.print(f"{name}: {took}", highlight=False)
    console.print(str(goal), highlight=False, soft_wrap=True)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.validation", description=(__doc__ or "").partition("\n")[0]
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="5,000 rows and short stretches: to see that it runs")
    add("--rows", type=int, metavar="N", help="of the dataset (default: 200000; quick: 5000)")
    add("--streams", type=int, default=8, metavar="N", help="at once (default: 8)")
    add("--seconds", type=float, help="of each of two stretches alone (default: 15; quick: 3)")
    add("--limit", type=float, default=600.0, metavar="SECONDS", help="most for the work on the dataset (default: 600)")
    add("--dtype", choices=("auto", "float32", "bfloat16"), default="auto", help="(default: the server's)")
    add("--material", type=Path, default=ROOT / "build" / "bench", help="where the base is kept")
    add("--json", type=Path, metavar="FILE", help="(default: a new file in benchmarks/results)")
    options = parser.parse_args(arguments)
    options.rows = options.rows or (5_000 if options.quick else 200_000)
    options.seconds = options.seconds or (3.0 if options.quick else 15.0)
    options.json = options.json or RESULTS / f"validation-{time.strftime('%Y%m%d-%H%M%S')}.json"
    if min(options.rows, options.streams) < 1 or min(options.seconds, options.limit) <= 0:
        parser.error("--rows and --streams must be at least 1, --seconds and --limit above 0")
    return options


def write(path: Path, machine: dict[str, Any], options: argparse.Namespace, made: dict[str, Any]) -> None:
    """All figures as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    settings = {name: getattr(options, name) for name in ("rows", "streams", "seconds", "limit", "dtype", "quick")}
    path.write_text(json.dumps({"machine": machine, "settings": settings, **made}, indent=2) + "\n")


def main() -> None:
    """Measure, report."""
    options = parse()
    machine = describe()
    options.material.mkdir(parents=True, exist_ok=True)
    console.print(sentence(machine), highlight=False, soft_wrap=True)
    base = prepare("default", options.material, usable_cpus(), options.material / "validation.log")
    data = options.material / "validation.jsonl"
    data.write_bytes(rows(options.rows))
    flags = ("--model", base.folder, "--dtype", options.dtype, "--device", "cpu")
    alone, beside, times = asyncio.run(measure(options, data, flags))
    figures = {"alone": pooled(alone), "beside the work": pooled(beside)}
    slower = figures["beside the work"].gap_p95 / figures["alone"].gap_p95
    goal = Goal("p95 between tokens, beside the work to alone", slower, SLOWER, at_most=True)
    show(figures, times, goal)
    made = {"figures": {name: asdict(f) for name, f in figures.items()}, "seconds": times, "goals": as_json([goal])}
    write(options.json, machine, options, made)
    console.print(f"Figures: {options.json}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
