"""What more replicas give: hit rate, loads and latency of routing policies, simulated for 1 to 1,000 replicas.

    make bench-scale-sim                                        # some minutes, no server
    make bench-scale-sim BENCH_ARGS=--quick                     # seconds
    python -m benchmarks.scale_sim --trace requests.jsonl --replicas 4 8 --adapters-held 64 --step 0.02
    python -m benchmarks.scale_sim --validate                   # beside 1 and 2 real replicas of the default base

Tenants ask for their adapters by a Zipf law, evenly or in bursts. Every run compares the server's own policy with three
plain ones: least queued, hashing by stack, and chance. A line of a trace is a JSON object with ``at`` (seconds),
``adapters`` (names), ``prompt`` and ``tokens`` (numbers of tokens). The same seed gives the same figures everywhere.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import quantiles
from typing import Any

from rich.table import Table

from .machine import describe
from .scale_model import ROUTES, Ask, Outcome, Size, Speed, Traffic, make_trace, simulate, warm_memory
from .serving import RESULTS, ROOT, console

SPEED = Speed(step=0.012, sequence=0.0002, prompt_token=0.00008, load=0.05)
"""Of the order of an 8B base on one large GPU. Give the flags what your own server's metrics say."""
SIZE = Size(adapters=64, running=256, batch_tokens=2048)
LOAD_PER_REPLICA = 6.0
"""Requests per second and replica: with ``SPEED`` a little more than half of what one can do."""


@dataclass(frozen=True, slots=True)
class Line:
    """One policy on one cluster. Times in seconds."""

    replicas: int
    policy: str
    arrivals: str
    hit_rate: float
    """Share of the requests' adapters that were in their replica's memory."""
    loads_per_second: float
    known_share: float
    """Of the prompts' tokens: those that were not computed again."""
    tokens_per_second: float
    first_p50: float
    first_p99: float
    end_p99: float
    batch: float
    """Sequences in a step on average."""


def line_of(outcome: Outcome, replicas: int, policy: str, arrivals: str) -> Line:
    """A run in figures. The first tenth of the requests only warms up; its loads are counted nowhere."""
    answers = outcome.answers[len(outcome.answers) // 10 :]
    asked = sum(len(answer.ask.adapters) for answer in answers)
    missing = sum(answer.missing for answer in answers)
    seconds = max(answer.end for answer in answers) - answers[0].at
    firsts = [answer.first - answer.at for answer in answers]
    ends = [answer.end - answer.at for answer in answers]
    return Line(
        replicas,
        policy,
        arrivals,
        hit_rate=1 - missing / asked if asked else 1.0,
        loads_per_second=missing / seconds,
        known_share=sum(answer.known for answer in answers) / sum(answer.ask.prompt for answer in answers),
        tokens_per_second=sum(answer.ask.tokens for answer in answers) / seconds,
        first_p50=_percentile(firsts, 50),
        first_p99=_percentile(firsts, 99),
        end_p99=_percentile(ends, 99),
        batch=sum(answer.ask.tokens for answer in outcome.answers) / outcome.steps,
    )


def _percentile(values: Sequence[float], percent: int) -> float:
    return quantiles(values, n=100, method="inclusive")[percent - 1] if len(values) > 1 else values[0]


def read_trace(lines: Iterable[str]) -> list[Ask]:
    """A trace, ordered by time. Raises ValueError that names the line where it is none."""
    trace = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            adapters = frozenset(map(str, row["adapters"]))
            trace.append(Ask(float(row["at"]), adapters, int(row["prompt"]), int(row["tokens"])))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"line {number} of the trace is no request: {error!r}") from None
    return sorted(trace, key=lambda ask: ask.at)


def synthetic(options: argparse.Namespace) -> Iterator[Line]:
    """Every policy on every size of cluster, evenly and in bursts."""
    size, speed = size_of(options), speed_of(options)
    for replicas in options.replicas:
        requests = min(options.requests, 400 * replicas)
        for arrivals, burst in (("even", 1.0), ("bursts", options.burst)):
            traffic = Traffic(requests, options.rate * replicas, options.adapters, options.skew, burst=burst)
            trace = make_trace(traffic, options.seed)
            for policy, route in ROUTES.items():
                warm = warm_memory(traffic, replicas, size, policy, options.seed)
                yield line_of(simulate(trace, replicas, speed, size, route, warm=warm), replicas, policy, arrivals)


def traced(options: argparse.Namespace) -> Iterator[Line]:
    """Every policy on every size of cluster, from empty memories."""
    with options.trace.open() as lines:
        trace = read_trace(lines)
    for replicas in options.replicas:
        for policy, route in ROUTES.items():
            outcome = simulate(trace, replicas, speed_of(options), size_of(options), route)
            yield line_of(outcome, replicas, policy, options.trace.name)


def speed_of(options: argparse.Namespace) -> Speed:
    return Speed(options.step, options.sequence, options.prompt_token, options.load)


def size_of(options: argparse.Namespace) -> Size:
    return Size(options.adapters_held, options.max_running, options.max_batch_tokens)


def make_table(lines: Iterable[Line], title: str) -> Table:
    table = Table(title=title, title_justify="left")
    for name in ("replicas", "arrivals", "policy"):
        table.add_column(name)
    for name in ("hits", "loads/s", "prefix", "tokens/s", "first p50", "first p99", "end p99", "batch"):
        table.add_column(name, justify="right")
    for line in lines:
        table.add_row(
            str(line.replicas),
            line.arrivals,
            line.policy,
            f"{line.hit_rate:.1%}",
            f"{line.loads_per_second:.1f}",
            f"{line.known_share:.1%}",
            f"{line.tokens_per_second:.0f}",
            *(f"{seconds:.3f} s" for seconds in (line.first_p50, line.first_p99, line.end_p99)),
            f"{line.batch:.1f}",
        )
    return table


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scale_sim", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--quick", action="store_true", help="small clusters and few requests: a trial")
    parser.add_argument("--replicas", type=int, nargs="+", default=[1, 2, 8, 64, 256, 1000])
    parser.add_argument("--requests", type=int, default=10_000, help="at most, of each run (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=LOAD_PER_REPLICA, help="requests/s and replica")
    parser.add_argument("--adapters", type=int, default=100_000)
    parser.add_argument("--skew", type=float, default=1.0, help="exponent of the Zipf law")
    parser.add_argument("--burst", type=float, default=2.0, help="how many times the rate in bursts, 1 to 5")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--trace", type=Path, metavar="FILE", help="requests to simulate instead, as JSON lines")
    for name, value, meaning in (
        ("step", SPEED.step, "seconds of a step"),
        ("sequence", SPEED.sequence, "seconds more for each sequence in it"),
        ("prompt-token", SPEED.prompt_token, "seconds more for each token of a prompt"),
        ("load", SPEED.load, "seconds to load an adapter"),
    ):
        parser.add_argument(f"--{name}", type=float, default=value, help=f"{meaning} (default: %(default)s)")
    parser.add_argument("--adapters-held", type=int, default=SIZE.adapters, help="adapters in a replica's memory")
    parser.add_argument("--max-running", type=int, default=SIZE.running)
    parser.add_argument("--max-batch-tokens", type=int, default=SIZE.batch_tokens)
    parser.add_argument("--validate", action="store_true", help="compare with 1 and 2 real replicas (extra ray)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="(default: a new file in benchmarks/results)")
    options = parser.parse_args(arguments)
    if options.quick:
        options.replicas, options.requests, options.adapters = [1, 2, 8], 600, 5_000
    if not 1 <= options.burst < 5:
        parser.error("--burst must be at least 1 and below 5: bursts fill a fifth of the time")
    if min(options.replicas) < 1:
        parser.error("--replicas must be 1 or more")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Simulate, report."""
    options = parse(arguments)
    begin = time.perf_counter()
    found: dict[str, Any] = {"quick": options.quick, "seed": options.seed}
    if options.validate:
        from .scale_validation import validate

        material = ROOT / "build" / "bench"
        material.mkdir(parents=True, exist_ok=True)
        found |= {"machine": describe(), **asyncio.run(validate(material, quick=options.quick))}
    else:
        lines = list(traced(options) if options.trace else synthetic(options))
        found |= {
            "speed": asdict(speed_of(options)),
            "size": asdict(size_of(options)),
            "lines": list(map(asdict, lines)),
        }
        title = f"{options.rate:g} requests/s and replica, {options.adapters} adapters, Zipf {options.skew:g}"
        console.print(make_table(lines, str(options.trace) if options.trace else title))
    found["seconds"] = round(time.perf_counter() - begin, 1)
    RESULTS.mkdir(exist_ok=True)
    path = options.json or RESULTS / f"scale-sim-{time.strftime('%Y%m%d-%H%M%S')}.json"
    path.write_text(json.dumps(found, indent=2) + "\n")
    console.print(f"Figures: {path}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
