"""What a tenant feels of one that floods: streams one at a time, alone and beside 64 streams with long prompts.

    make bench-tenants                                  # three rounds, three minutes
    make bench-tenants BENCH_ARGS=--quick               # to see that it runs
    python -m benchmarks.tenants --flood 256 --serve=--tenant-slowdown=2

One server with a key for each of two tenants, asked over gRPC by this process. A round is two stretches of equal
length: ``quiet`` asks alone, then beside ``flood``. The rounds are put together, so that a machine whose speed drifts
is seen by both alike. What the flood gets while nobody is beside it is measured once, at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.table import Table

from loramux import AsyncClient
from loramux_server.host.resources import usable_cpus

from .goals import Goal, as_json
from .load import own_server
from .machine import describe, sentence
from .samples import Figures, Sample, Stopwatch
from .serving import RESULTS, ROOT, console, prepare, save
from .streams import kept, pooled
from .workloads import SENTENCES, prompt

TENANTS = ("quiet", "flood")
WARM_UP = 4.0
"""Seconds that the flood runs before anything beside it is measured."""
LONG = 24
"""Sentences of a long prompt: some 450 tokens of the default base."""
FLOOD_TOKENS = 256

Stretches = list[tuple[list[Sample], float]]
"""Samples, and the seconds of their stretch."""


@dataclass(slots=True)
class Found:
    """What all rounds found."""

    alone: Stretches = field(default_factory=list)
    beside: Stretches = field(default_factory=list)
    flood_beside: list[float] = field(default_factory=list)
    """Tokens/s of the flood in each stretch beside the quiet tenant."""
    flood_alone: float = 0.0


def goals(alone: Figures, beside: Figures) -> list[Goal]:
    """What the quiet tenant's figures have to reach."""
    return [
        Goal("p95 between tokens, beside the flood to alone", beside.gap_p95 / alone.gap_p95, 1.2, at_most=True),
        Goal("p50 to the first token, the same", beside.first_p50 / alone.first_p50, 2.0, at_most=True),
        Goal("p95 to the first token, the same", beside.first_p95 / alone.first_p95, 2.0, at_most=True),
    ]


class Flood:
    """Streams of a tenant that never pause, each with a long prompt of its own. A context: they run in it."""

    def __init__(self, client: AsyncClient, streams: int) -> None:
        self._client, self._streams = client, streams
        self._numbers = count()
        self._tokens = 0
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Flood:
        self._tasks = [asyncio.create_task(self._stream()) for _ in range(self._streams)]
        await asyncio.sleep(WARM_UP)
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)

    @property
    def tokens(self) -> int:
        """Tokens that came so far."""
        return self._tokens

    async def _stream(self) -> None:
        while True:
            number = next(self._numbers)
            words = " ".join(SENTENCES[(number + i) % len(SENTENCES)] for i in range(LONG))
            stream = self._client.stream(
                f"{number} (flood). {words}", max_tokens=FLOOD_TOKENS, temperature=0.0, ignore_eos=True
            )
            async with stream:
                async for chunk in stream:
                    self._tokens += len(chunk.token_ids)


async def ask(client: AsyncClient, tokens: int, seconds: float, mark: str) -> tuple[list[Sample], float]:
    """One stream after the other for ``seconds``; the last one may end later."""
    samples, begin = [], time.perf_counter()
    for number in count():
        if time.perf_counter() - begin >= seconds:
            break
        watch = Stopwatch()
        stream = client.stream(prompt(number, mark), max_tokens=tokens, temperature=0.0, ignore_eos=True)
        async with stream:
            async for chunk in stream:
                watch.tokens(chunk.token_ids)
        samples.append(watch.sample())
    return samples, time.perf_counter() - begin


async def measure(options: argparse.Namespace, base: str) -> Found:
    """All rounds on one server."""
    found = Found()
    with TemporaryDirectory(prefix="loramux-bench-") as state:
        keys = {tenant: make_key(tenant, state) for tenant in TENANTS}
        async with (
            own_server(["--model", base, "--state-dir", state, *options.serve], output=subprocess.DEVNULL) as address,
            AsyncClient(address, api_key=keys["quiet"]) as quiet,
            AsyncClient(address, api_key=keys["flood"]) as flooding,
        ):
            await ask(quiet, options.tokens, 2.0, "warm")
            for number in range(options.rounds):
                found.alone.append(await ask(quiet, options.tokens, options.seconds, f"alone {number}"))
                async with Flood(flooding, options.flood) as flood:
                    before = flood.tokens
                    beside = await ask(quiet, options.tokens, options.seconds, f"beside {number}")
                    found.beside.append(beside)
                    found.flood_beside.append((flood.tokens - before) / beside[1])
                await asyncio.sleep(1.0)  # what was broken off is freed
            async with Flood(flooding, options.flood) as flood:
                before = flood.tokens
                await asyncio.sleep(options.seconds)
                found.flood_alone = (flood.tokens - before) / options.seconds
    return found


def make_key(tenant: str, state: str) -> str:
    """A key of a tenant, in the database that the server will have."""
    command = [sys.executable, "-m", "loramux_server", "keys", "create", "--tenant", tenant]
    command += ["--state-dir", state, "--json"]
    made = subprocess.run(command, check=True, capture_output=True, text=True)
    return str(json.loads(made.stdout)["key"])


def show(found: Found, figures: dict[str, Figures], streams: int) -> None:
    """Print the table and the goals."""
    table = Table(title=f"one stream at a time, alone and beside {streams}", title_justify="left")
    for column in ("quiet tenant", "requests", "tokens/s", "first p50", "p95", "between p50", "p95", "flood tokens/s"):
        table.add_column(column, justify="left" if column == "quiet tenant" else "right", no_wrap=True)
    flood = {"alone": "", "beside": f"{mean(found.flood_beside):.1f}"}
    for name, f in figures.items():
        times = (f"{1000 * t:.1f} ms" for t in (f.first_p50, f.first_p95, f.gap_p50, f.gap_p95))
        table.add_row(name, str(f.requests), f"{f.tokens_per_second:.1f}", *times, flood[name])
    table.add_row("away", *[""] * 6, f"{found.flood_alone:.1f}")
    console.print(table)
    for goal in goals(figures["alone"], figures["beside"]):
        console.print(str(goal), highlight=False, soft_wrap=True)


def mean(values: Sequence[float]) -> float:
    """Of a number of values that is not nought."""
    return sum(values) / len(values)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tenants", description=(__doc__ or "").partition("\n")[0]
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="one round of five seconds: to see that it runs")
    add("--flood", type=int, default=64, metavar="N", help="streams of the tenant that floods (default: 64)")
    add("--tokens", type=int, default=64, help="of each answer to the quiet tenant (default: 64)")
    add("--rounds", type=int, help="(default: 3; quick: 1)")
    add("--seconds", type=float, help="of each stretch (default: 20; quick: 5)")
    add("--serve", action="append", default=[], metavar="FLAG", help="one more flag of the server; may be repeated")
    add("--material", type=Path, default=ROOT / "build" / "bench", help="where the base is kept")
    add("--json", type=Path, metavar="FILE", help="(default: a new one in results)")
    options = parser.parse_args(arguments)
    options.rounds = options.rounds or (1 if options.quick else 3)
    options.seconds = options.seconds or (5.0 if options.quick else 20.0)
    options.json = options.json or RESULTS / f"tenants-{time.strftime('%Y%m%d-%H%M%S')}.json"
    if min(options.flood, options.tokens, options.rounds) < 1 or options.seconds <= 0:
        parser.error("--flood, --tokens and --rounds must be at least 1, --seconds above 0")
    return options


def main() -> None:
    """Measure, report."""
    options, machine = parse(), describe()
    options.material.mkdir(parents=True, exist_ok=True)
    console.print(sentence(machine), highlight=False, soft_wrap=True)
    base = prepare("default", options.material, usable_cpus(), options.material / "tenants.log")
    found = asyncio.run(measure(options, base.folder))
    figures = {name: pooled([(kept(s), t) for s, t in getattr(found, name)]) for name in ("alone", "beside")}
    show(found, figures, options.flood)
    made = {
        "machine": machine,
        "settings": {name: getattr(options, name) for name in ("flood", "tokens", "rounds", "seconds", "serve")},
        "quiet": {name: asdict(f) for name, f in figures.items()},
        "flood tokens/s": {"beside": found.flood_beside, "away": found.flood_alone},
        "goals": as_json(goals(figures["alone"], figures["beside"])),
    }
    save(options.json, made)


if __name__ == "__main__":
    main()
