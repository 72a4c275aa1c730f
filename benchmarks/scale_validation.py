"""The simulation beside real replicas: the same requests through ``loramux serve --backend ray`` and through the model.

One embedded engine with one thread is measured first: how long its steps, prompts and loads take. With these times the
model says what 1 and 2 replicas will do, and then they are run.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, median
from tempfile import TemporaryDirectory
from typing import Any

from rich.table import Table

from loramux_server.host.resources import usable_cpus

from . import scrape
from .job import Base
from .samples import Sample
from .scale_model import Ask, Size, Speed, by_affinity, simulate
from .scale_parts import Server, open_server
from .serving import WEIGHT_BYTES, console, prepare
from .traffic import zipf
from .workloads import ADAPTERS, RANK, prompt
from .workloads import Ask as Request

TOKENS = 32
HELD = 6
"""Adapters that a replica has room for, of the 16 that are asked for."""
AT_ONCE = 4
"""Requests under way for each replica."""
GOAL = 0.1
"""The model's figures shall be so near to the measured ones."""
DTYPE = "float32"


@dataclass(frozen=True, slots=True)
class Compared:
    """What the model said of a cluster, and what it did."""

    replicas: int
    tokens_per_second: float
    predicted_tokens_per_second: float
    hit_rate: float
    predicted_hit_rate: float

    @property
    def errors(self) -> tuple[float, float]:
        """How far the prediction is off, as shares of what was measured: throughput, hit rate."""
        return (
            abs(self.predicted_tokens_per_second / self.tokens_per_second - 1),
            abs(self.predicted_hit_rate / self.hit_rate - 1),
        )


async def validate(material: Path, *, quick: bool) -> dict[str, Any]:
    """Measure an engine, then compare the model with 1 and 2 replicas; prints a table, gives all figures."""
    log = material / "scale-validation.log"
    base = prepare("default", material, usable_cpus(), log)
    requests = 32 if quick else 160
    with log.open("ab") as output, TemporaryDirectory(prefix="loramux-bench-") as folder:
        async with open_server(flags(base, f"{folder}/embedded", {}), output) as server:
            speed = await measured_speed(server, await upload(server, base))
        compared = []
        for replicas in (1, 2):
            chosen = zipf(ADAPTERS, requests * replicas, seed=replicas)
            ray = {"--backend": "ray", "--replicas": str(replicas)}
            async with open_server(flags(base, f"{folder}/ray-{replicas}", ray), output) as server:
                names = await upload(server, base)
                samples, seconds, hits = await run(server, names, chosen, AT_ONCE * replicas)
            compared.append(compare(replicas, chosen, samples, seconds, hits, speed))
    console.print(make_table(compared))
    lines = [{**asdict(each), "errors": each.errors} for each in compared]
    within = all(error <= GOAL for each in compared for error in each.errors)
    return {"speed": asdict(speed), "compared": lines, "within": within}


def flags(base: Base, state_dir: str, more: Mapping[str, str]) -> dict[str, str]:
    """Of a server whose engines have one thread each, and room for ``HELD`` adapters."""
    adapter = base.shape.adapter_weights(RANK) * WEIGHT_BYTES[DTYPE]
    return {
        "--model": base.folder,
        "--state-dir": state_dir,
        "--dtype": DTYPE,
        "--threads": "1",
        "--speculate": "off",
        "--adapter-memory": str(HELD * adapter),
        "--adapter-host-memory": "0",
        **more,
    }


async def upload(server: Server, base: Base) -> list[str]:
    """Upload the base's adapters; gives their names."""
    names = [Path(folder).name for folder in base.adapters]
    for name, folder in zip(names, base.adapters, strict=True):
        await server.client.adapters.upload(name, folder)
    return names


async def measured_speed(server: Server, names: Sequence[str]) -> Speed:
    """How long an engine's steps, prompts and loads take, by requests one at a time and several at once."""
    one, _ = await server.run(names, asks([0] * 6, "one"), 1)
    several, _ = await server.run(names, asks([0] * 4 * AT_ONCE, "several"), AT_ONCE)
    gap, gaps = (median(gap for sample in samples for gap in sample.gaps) for samples in (one[1:], several))
    sequence = max(0.0, (gaps - gap) / (AT_ONCE - 1))
    first = fmean(sample.first for sample in one[1:])
    prompts = fmean(sample.prompt_tokens for sample in one[1:])
    before = await scrape.read(server.metrics)
    await server.run(names, asks(range(ADAPTERS), "loads"), 1)
    added = scrape.since(before, await scrape.read(server.metrics))
    loads = [scrape.loads(added, tier) for tier in ("host", "device")]
    seconds = sum(total / times for times, total in loads if times)
    return Speed(gap - sequence, sequence, max(0.0, first - gap) / prompts, seconds)


def asks(adapters: Sequence[int], mark: str) -> list[Request]:
    return [Request(prompt(i, mark), ((adapter, 1.0),), TOKENS) for i, adapter in enumerate(adapters)]


async def run(
    server: Server, names: Sequence[str], chosen: Sequence[int], at_once: int
) -> tuple[list[Sample], float, float]:
    """Ask for these adapters: samples, seconds, and the share of the adapters that were in memory."""
    before = await scrape.read(server.metrics)
    samples, seconds = await server.run(names, asks(chosen, str(random.Random(at_once).random())), at_once)
    added = scrape.since(before, await scrape.read(server.metrics))
    return samples, seconds, 1 - scrape.hit_shares(added).get("disk", 0.0)


def compare(
    replicas: int, chosen: Sequence[int], samples: Sequence[Sample], seconds: float, hits: float, speed: Speed
) -> Compared:
    """The same requests through the model."""
    trace = [
        Ask(0.0, frozenset({f"a{adapter}"}), sample.prompt_tokens, TOKENS)
        for adapter, sample in zip(chosen, samples, strict=True)
    ]
    size = Size(HELD, running=64, batch_tokens=512)
    outcome = simulate(trace, replicas, speed, size, by_affinity, at_once=AT_ONCE * replicas)
    tokens = TOKENS * len(trace)
    return Compared(
        replicas,
        tokens / seconds,
        tokens / max(answer.end for answer in outcome.answers),
        hits,
        1 - outcome.loads / len(trace),
    )


def make_table(compared: Sequence[Compared]) -> Table:
    table = Table(title="the model beside real replicas", title_justify="left")
    for name in ("replicas", "tokens/s", "predicted", "off", "hits", "predicted", "off"):
        table.add_column(name, justify="right")
    for each in compared:
        speed, hits = each.errors
        table.add_row(
            str(each.replicas),
            f"{each.tokens_per_second:.1f}",
            f"{each.predicted_tokens_per_second:.1f}",
            f"{speed:.0%}",
            f"{each.hit_rate:.1%}",
            f"{each.predicted_hit_rate:.1%}",
            f"{hits:.0%}",
        )
    return table
