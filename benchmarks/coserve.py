"""What training and serving cost each other: streams with and without a job, a job with and without streams.

    make bench-coserve                                  # two rounds, half a minute a stretch
    make bench-coserve BENCH_ARGS=--quick               # to see that it runs
    python -m benchmarks.coserve --streams 8 --share 0.3 --dtype bfloat16 --seconds 60

One server, asked over gRPC by this process. A round is four stretches of equal length, and the rounds are put
together, so that a machine whose speed drifts is seen by all alike:

    direct    the trainer called in a process of its own, no server at work
    alone     the same job on the server, without requests
    streams   streams without a job: as one ends the next begins
    both      streams beside the job

Training tokens/s are input tokens of whole steps after the first few, from step end to step end. Tokens between two
that came together share the time since the ones before.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
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
from .machine import DEVICES, describe, sentence
from .samples import Figures, Sample
from .serving import RESULTS, ROOT, child, console, prepare
from .streams import keep_streaming, pooled
from .stretches import Stretch, Trained, between, rate
from .train_job import TrainJob, TrainResult
from .training import layer_numbers

SKIP = 2
"""Steps of a job that warm up."""
ENDS = 4
"""Fewest ends of steps in a stretch: three whole steps; a stretch in which there are fewer goes on."""
FOREVER = 400.0
"""Epochs: more than any stretch is long; the job is cancelled at its end."""


@dataclass(slots=True)
class Found:
    """What all rounds found."""

    direct: list[Stretch] = field(default_factory=list)
    alone: list[Stretch] = field(default_factory=list)
    both: list[Stretch] = field(default_factory=list)
    without: list[tuple[list[Sample], float]] = field(default_factory=list)
    beside: list[tuple[list[Sample], float]] = field(default_factory=list)


def goals(with_job: Figures, without: Figures, direct: float, alone: float, both: float) -> list[Goal]:
    """What the figures have to reach. Training in tokens per second."""
    slower = with_job.gap_p95 / without.gap_p95
    return [
        Goal("p95 between tokens, with a job to without", slower, 1.5, at_most=True),
        Goal("training beside streams, of its speed alone", both / alone, 0.25, percent=True),
        Goal("training on a server without requests, of the trainer called", alone / direct, 0.95, percent=True),
    ]


class Measuring:
    """The stretches of a round, on one server."""

    def __init__(self, client: AsyncClient, job: TrainJob, options: argparse.Namespace, log: Path) -> None:
        self._client, self._job, self._options, self._log = client, job, options, log
        self._rounds = 0
        self._tokens_of_a_step = 1.0  # mean, seen on the server

    async def round(self, found: Found) -> None:
        """One of each stretch."""
        self._rounds += 1
        seconds, mark = self._options.seconds, f"round {self._rounds}"
        found.alone.append(await self._alone())
        steps = max(SKIP + 2, round(seconds * rate(found.alone) / self._tokens_of_a_step))
        found.direct.append(await asyncio.to_thread(self._direct, steps))
        await self._warm_up(f"{mark} without")
        found.without.append(await self._streams(f"{mark} without"))
        training = await self._begin()
        try:
            await self._warm_up(f"{mark} with")
            begin, steps = time.time(), len(training.ends) + ENDS
            found.beside.append(await self._streams(f"{mark} with"))
            while (
                training.lasts() and len(training.ends) < steps
            ):  # a slow machine: streams go on until there is something to measure
                found.beside.append(await self._streams(f"{mark} with, after {len(training.ends)}"))
            found.both.append(between(training.ends, begin, time.time()))
        finally:
            await training.cancel()

    async def _warm_up(self, mark: str) -> None:
        await keep_streaming(self._client, self._options.streams, 4, 2.0, f"warm {mark}")

    async def _streams(self, mark: str) -> tuple[list[Sample], float]:
        options = self._options
        return await keep_streaming(self._client, options.streams, options.tokens, options.seconds, mark)

    async def _begin(self) -> Trained:
        training = Trained(await self._client.train("beside", Path(self._job.data[0]), **self._job.settings))
        try:
            await training.reach(SKIP)
        except BaseException:
            with suppress(Exception):  # the first failure is the one to tell
                await training.cancel()
            raise
        return training

    async def _alone(self) -> Stretch:
        training = await self._begin()
        begin = time.time()
        await asyncio.gather(asyncio.sleep(self._options.seconds), training.reach(len(training.ends) + ENDS))
        found = between(training.ends, begin, time.time())
        self._tokens_of_a_step = sum(tokens for _, tokens in training.ends) / len(training.ends)
        await training.cancel()
        return found

    def _direct(self, steps: int) -> Stretch:
        """As many steps as the server did alone in one stretch."""
        with tempfile.TemporaryDirectory(prefix="loramux-bench-") as scratch:
            job = replace(self._job, system="direct", scratch=scratch, max_steps=steps)
            lines = list(child("benchmarks.trainers", [], msgspec.json.encode(job), job.threads, self._log))
            (run,) = msgspec.json.decode(lines[-1], type=TrainResult).jobs
        return Stretch(sum(run.tokens[SKIP:]), run.ends[-1] - run.ends[SKIP - 1])


def show(figures: dict[str, Figures], speeds: dict[str, float], title: str) -> None:
    """Print the tables and the goals."""
    table = Table(title=title, title_justify="left")
    for column in ("streams", "tokens/s", "first p50", "p95", "between p50", "p95", "requests"):
        table.add_column(column, justify="left" if column == "streams" else "right", no_wrap=True)
    for name, f in figures.items():
        times = (f"{1000 * t:.1f} ms" for t in (f.first_p50, f.first_p95, f.gap_p50, f.gap_p95))
        table.add_row(name, f"{f.tokens_per_second:.1f}", *times, str(f.requests))
    console.print(table)
    for name, speed in speeds.items():
        console.print(f"training {name}: {speed:.1f} tokens/s", highlight=False)


async def measure(job: TrainJob, options: argparse.Namespace, log: Path) -> tuple[Found, str]:
    """All rounds on one server, and the type that it computes in."""
    flags = {
        "--model": job.base,
        "--device": job.device,
        "--dtype": job.dtype,
        "--threads": str(job.threads),
        "--training-share": str(options.share),
    }
    found = Found()
    given = [part for pair in flags.items() for part in pair]
    async with own_server(given) as address, AsyncClient(address) as client:
        measuring = Measuring(client, job, options, log)
        for number in range(options.rounds):
            await measuring.round(found)
            console.print(f"round {number + 1} of {options.rounds}", highlight=False)
        return found, (await client.info()).dtype


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.coserve", description=(__doc__ or "").partition("\n")[0]
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="one round of ten seconds a stretch, upper layers: to see that it runs")
    add("--streams", type=int, default=8, metavar="N", help="streams at once (default: 8)")
    add("--tokens", type=int, default=64, metavar="N", help="new tokens per request (default: 64)")
    add("--share", type=float, default=0.3, help="the server's --training-share (default: 0.3)")
    add("--seconds", type=float, help="of each stretch (default: 30; quick: 10)")
    add("--rounds", type=int, help="(default: 2; quick: 1)")
    add("--layers", metavar="all|M-N", help="that the job adapts (default: all; quick: 15-29)")
    add("--dtype", choices=("float32", "bfloat16"), default="bfloat16", help="(default: bfloat16)")
    add("--device", choices=DEVICES, default=DEVICES[0], help=f"(default: {DEVICES[0]})")
    add("--threads", type=int, default=usable_cpus(), help="of the engine (default: affinity and quota)")
    add("--material", type=Path, default=ROOT / "build" / "bench", help="where the base is kept")
    add("--json", type=Path, metavar="FILE", help="(default: a new file in benchmarks/results)")
    options = parser.parse_args(arguments)
    options.seconds = options.seconds or (10.0 if options.quick else 30.0)
    options.rounds = options.rounds or (1 if options.quick else 2)
    options.layers = options.layers or ("15-29" if options.quick else "all")
    try:
        options.numbers = layer_numbers(options.layers)
    except ValueError as error:
        parser.error(f"--layers: {error}")
    if min(options.streams, options.threads, options.rounds) < 1 or options.tokens < 2 or options.seconds <= 0:
        parser.error("--streams, --threads and --rounds must be at least 1, --tokens at least 2, --seconds above 0")
    if not 0 <= options.share <= 1:
        parser.error("--share must be between 0 and 1")
    return options


def write(path: Path, machine: dict[str, Any], options: argparse.Namespace, made: dict[str, Any]) -> None:
    """All figures as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    chosen = ("streams", "tokens", "share", "seconds", "rounds", "layers", "device", "threads", "quick")
    settings = {name: getattr(options, name) for name in chosen}
    path.write_text(json.dumps({"machine": machine, "settings": settings, **made}, indent=2) + "\n")


def main() -> None:
    """Measure all rounds, report."""
    options = parse()
    machine = describe()
    options.material.mkdir(parents=True, exist_ok=True)
    stamp = time.strftime("%Y%m%d-%H%M%S")
    log = options.material / f"coserve-{stamp}.log"
    console.print(sentence(machine), highlight=False, soft_wrap=True)
    base = prepare("default", options.material, options.threads, log)
    job = TrainJob(
        system="direct",
        base=base.folder,
        data=(str(DATA / "messages" / "acme-bikes" / "train.jsonl"),),
        dtype=options.dtype,
        threads=options.threads,
        scratch="",
        epochs=FOREVER,
        layers=options.numbers,
        device=options.device,
        **{key: FACTS[key] for key in ("rank", "alpha", "learning_rate", "batch_size")},
    )
    found, dtype = asyncio.run(measure(job, options, log))
    figures = {"without a job": pooled(found.without), "beside a job": pooled(found.beside)}
    speeds = {
        "called in a process of its own": rate(found.direct),
        "on a server without requests": rate(found.alone),
        "beside the streams": rate(found.both),
    }
    direct, alone, both = speeds.values()
    reached = goals(figures["beside a job"], figures["without a job"], direct, alone, both)
    show(
        figures,
        speeds,
        f"{options.streams} streams, {options.device}, {dtype}, {options.threads} threads, share {options.share}",
    )
    for goal in reached:
        console.print(str(goal), highlight=False, soft_wrap=True)
    path = options.json or RESULTS / f"coserve-{stamp}.json"
    made = {
        "dtype": dtype,
        "streams": {name: asdict(f) for name, f in figures.items()},
        "training_tokens_per_second": speeds,
        "stretches": {name: [asdict(s) for s in getattr(found, name)] for name in ("direct", "alone", "both")},
        "goals": as_json(reached),
    }
    write(path, machine, options, made)
    console.print(f"Figures: {path}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
