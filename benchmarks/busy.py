"""A machine that is not idle: streams and a training job beside busy processes, under several ways of waiting.

    make bench-busy                                     # twelve cells, about ten minutes on two cores
    make bench-busy BENCH_ARGS=--quick                  # to see that it runs
    python -m benchmarks.busy --json FILE --limit 120   # begins no cell after 120 s; again: goes on where it was
    python -m benchmarks.busy --also GOMP_SPINCOUNT=1000 --also OMP_PROC_BIND=true

One server for each way its OpenMP threads may wait for each other: as loramux starts it, with ``GOMP_SPINCOUNT=0``,
with ``OMP_WAIT_POLICY=passive``. A cell is one load (so many streams, or a job) beside so many busy processes. The
servers take turns within a cell, so that a machine whose speed drifts is seen by all alike. The goal in each cell:
loramux as it comes is at most 10 % slower than the best.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Any

import msgspec
from rich.table import Table

from loramux import AsyncClient
from loramux_server.host.resources import usable_cpus
from tools.make_adapters import FACTS
from tools.make_data import DATA

from .goals import Goal, as_json
from .load import own_server
from .machine import describe, sentence
from .serving import RESULTS, ROOT, console, prepare
from .streams import keep_streaming
from .stretches import Trained, between, rate

OURS = "as it comes"
WAYS: dict[str, dict[str, str]] = {
    OURS: {},
    "GOMP_SPINCOUNT=0": {"GOMP_SPINCOUNT": "0"},
    "OMP_WAIT_POLICY=passive": {"OMP_WAIT_POLICY": "passive"},
}
WAITING = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_PROC_BIND", "OMP_NUM_THREADS", "OMP_DYNAMIC")
"""Variables that decide how threads wait: the caller's own would make all servers alike."""
WITHIN = 0.9
"""Least speed of the best, in each cell."""
SKIP, ENDS = 2, 4
"""Steps of a job that warm up; fewest ends of steps in a stretch."""
TOKENS = 64
FOREVER = 400.0
"""Epochs: the job is cancelled when it has been measured."""

Busy = int
Work = int
"""Streams at once; 0: a training job."""


class Cell(msgspec.Struct, frozen=True):
    """One load beside so many busy processes, and the tokens/s of each way of waiting: whole, and round by round."""

    busy: Busy
    streams: Work
    speeds: dict[str, float]
    rounds: dict[str, list[float]]

    @property
    def name(self) -> str:
        return f"{work_name(self.streams)}, {self.busy} busy"


def work_name(streams: Work) -> str:
    """How the table calls a load."""
    return "training" if not streams else f"{streams} stream{'s' * (streams > 1)}"


class Report(msgspec.Struct):
    """All cells measured so far. ``ways``: the environment of each server."""

    machine: dict[str, Any]
    settings: dict[str, Any]
    ways: dict[str, dict[str, str]]
    cells: list[Cell] = []

    def missing(self, wanted: Sequence[tuple[Busy, Work]]) -> list[tuple[Busy, Work]]:
        done = {(cell.busy, cell.streams) for cell in self.cells}
        return [pair for pair in wanted if pair not in done]

    def goals(self) -> list[Goal]:
        return [
            Goal(f"{cell.name}, of the best", cell.speeds[OURS] / max(cell.speeds.values()), WITHIN, percent=True)
            for cell in self.cells
        ]


@contextmanager
def busy_processes(count: Busy) -> Iterator[list[subprocess.Popen[bytes]]]:
    """So many processes that compute and never wait."""
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield running
    finally:
        for process in running:
            process.kill()
            process.wait()


async def streaming(client: AsyncClient, streams: int, seconds: float, mark: str) -> float:
    """Tokens per second of streams that follow each other without a pause; 0 where none came."""
    await keep_streaming(client, streams, 8, 1.0, f"warm {mark}")
    samples, took = await keep_streaming(client, streams, TOKENS, seconds, mark)
    return sum(len(sample.tokens) for sample in samples) / took


async def training(client: AsyncClient, seconds: float) -> float:
    """Training tokens per second of whole steps."""
    facts = {key: FACTS[key] for key in ("rank", "alpha", "learning_rate", "batch_size")}
    data = DATA / "messages" / "acme-bikes" / "train.jsonl"
    job = Trained(await client.train("busy", data, epochs=FOREVER, seed=0, **facts))
    try:
        await job.reach(SKIP)
        begin = time.time()
        await asyncio.gather(asyncio.sleep(seconds), job.reach(len(job.ends) + ENDS))
        stretch = between(job.ends, begin, time.time())
    finally:
        await job.cancel()
    return rate([stretch])


async def measure(clients: Mapping[str, AsyncClient], busy: Busy, streams: Work, options: argparse.Namespace) -> Cell:
    """One cell: all servers in turn, each round beginning with another."""
    found: dict[str, list[float]] = {way: [] for way in clients}
    order = list(clients)
    with busy_processes(busy):
        for number in range(options.rounds):
            for way in order[number % len(order) :] + order[: number % len(order)]:
                mark = f"{busy} {streams} {number} {way}"
                speed = (
                    await streaming(clients[way], streams, options.seconds, mark)
                    if streams
                    else await training(clients[way], options.seconds)
                )
                found[way].append(speed)
    return Cell(busy, streams, {way: sum(speeds) / len(speeds) for way, speeds in found.items()}, found)


async def run(report: Report, options: argparse.Namespace, base: str) -> None:
    """Measure the missing cells, as many as the time allows, and write after each."""
    begin = time.monotonic()
    todo = report.missing([(busy, streams) for streams, busy in itertools.product(options.streams, options.busy)])
    if not todo:
        return
    flags = ("--model", base, "--dtype", options.dtype, "--device", "cpu")
    async with AsyncExitStack() as stack:
        log = stack.enter_context((options.material / "busy.log").open("ab"))
        servers = [own_server(flags, environment, log) for environment in report.ways.values()]
        addresses = await asyncio.gather(*map(stack.enter_async_context, servers))
        clients = {
            way: await stack.enter_async_context(AsyncClient(address))
            for way, address in zip(report.ways, addresses, strict=True)
        }
        report.settings["dtype"] = (await clients[OURS].info()).dtype
        for busy, streams in todo:
            if options.limit and time.monotonic() - begin > options.limit:
                console.print("time is over; the same command goes on from here", highlight=False)
                return
            report.cells.append(await measure(clients, busy, streams, options))
            console.print(f"{report.cells[-1].name}: {report.cells[-1].speeds}", highlight=False, soft_wrap=True)
            write(options.json, report)


def show(report: Report) -> None:
    """Print the table and the goals."""
    table = Table(title="tokens/s beside busy processes", title_justify="left")
    table.add_column("cell")
    for way in report.ways:
        table.add_column(way, justify="right")
    for cell in report.cells:
        table.add_row(cell.name, *(f"{cell.speeds[way]:.1f}" for way in report.ways))
    console.print(table)
    for goal in report.goals():
        console.print(str(goal), highlight=False, soft_wrap=True)


def write(path: Path, report: Report) -> None:
    """All figures as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    made = {**msgspec.to_builtins(report), "goals": as_json(report.goals())}
    path.write_text(json.dumps(made, indent=2) + "\n")


def setting(text: str) -> tuple[str, str]:
    """A variable and its value. Raises ArgumentTypeError for anything else."""
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, value


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.busy", description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--quick", action="store_true", help="one stream and no training beside 0 and 1: to see that it runs")
    add("--busy", type=int, nargs="+", metavar="N", help="busy processes (default: 0 1 2; quick: 0 1)")
    add("--streams", type=int, nargs="+", metavar="N", help="loads; 0 is a job (default: 1 8 16 0; quick: 1)")
    add("--seconds", type=float, help="of each stretch (default: 6; quick: 2)")
    add("--rounds", type=int, help="stretches of each server in a cell (default: 2; quick: 1)")
    add("--also", type=setting, action="append", default=[], metavar="NAME=VALUE", help="one more way of waiting")
    add("--dtype", choices=("auto", "float32", "bfloat16"), default="auto", help="(default: the server's)")
    add("--limit", type=float, metavar="SECONDS", help="begin no cell after so long; the next run goes on")
    add("--material", type=Path, default=ROOT / "build" / "bench", help="where the base is kept")
    add("--json", type=Path, metavar="FILE", help="goes on with a file that is there (default: a new one in results)")
    options = parser.parse_args(arguments)
    options.busy = options.busy or ([0, 1] if options.quick else [0, 1, 2])
    options.streams = options.streams or ([1] if options.quick else [1, 8, 16, 0])
    options.seconds = options.seconds or (2.0 if options.quick else 6.0)
    options.rounds = options.rounds or (1 if options.quick else 2)
    options.json = options.json or RESULTS / f"busy-{time.strftime('%Y%m%d-%H%M%S')}.json"
    if min(*options.busy, *options.streams) < 0 or options.rounds < 1 or options.seconds <= 0:
        parser.error("--busy and --streams must be at least 0, --rounds at least 1, --seconds above 0")
    return options


def begin_report(options: argparse.Namespace) -> Report:
    """A new report, or the one that the file holds."""
    if options.json.exists():
        return msgspec.json.decode(options.json.read_bytes(), type=Report)
    chosen = ("busy", "streams", "seconds", "rounds", "quick")
    ways = WAYS | {f"{name}={value}": {name: value} for name, value in options.also}
    return Report(describe(), {name: getattr(options, name) for name in chosen}, ways)


def main() -> None:
    """Measure the cells, report."""
    options = parse()
    for name in WAITING:
        os.environ.pop(name, None)
    options.material.mkdir(parents=True, exist_ok=True)
    report = begin_report(options)
    console.print(sentence(report.machine), highlight=False, soft_wrap=True)
    base = prepare("default", options.material, usable_cpus(), options.material / "busy.log")
    asyncio.run(run(report, options, base.folder))
    show(report)
    console.print(f"Figures: {options.json}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
