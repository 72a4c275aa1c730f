"""Which runs a way to train needs: three learning rates and more at the edge, then the best one's other seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

LADDERS = {
    "full": (1e-5, 3e-5, 1e-4, 3e-4, 1e-3),
    "lora": (3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
    "qlora": (3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
}
"""Learning rates by way, in equal steps; the middle three are always tried."""


@dataclass(frozen=True, slots=True)
class Run:
    """One training. Losses are means over the loss tokens."""

    rate: float
    seed: int
    chosen_on_loss: float
    held_out_loss: float
    right: int | None = None
    """Held-out answers that are right; None: not asked, for another rate was better."""
    of: int = 0


def read(runs: Sequence[dict[str, Any]]) -> list[Run]:
    """Runs out of a results file."""
    return [Run(**run) for run in runs]


def best_rate(runs: Sequence[Run]) -> float:
    """The rate whose first seed has the lowest loss on the rows that rates are chosen on. Raises ValueError without."""
    return min((run for run in runs if run.seed == 0), key=lambda run: run.chosen_on_loss).rate


def next_runs(runs: Sequence[Run], ladder: Sequence[float], seeds: int) -> list[tuple[float, int]]:
    """Rate and seed of what is to be trained next; empty: all is done."""
    middle = len(ladder) // 2
    tried = {run.rate for run in runs if run.seed == 0}
    first = [rate for rate in (ladder[middle], ladder[middle - 1], ladder[middle + 1]) if rate not in tried]
    if first:
        return [(rate, 0) for rate in first]
    best = best_rate(runs)
    place = ladder.index(best)
    beyond = [ladder[i] for i in (place - 1, place + 1) if 0 <= i < len(ladder) and ladder[i] not in tried]
    if beyond:
        return [(rate, 0) for rate in beyond]
    done = {run.seed for run in runs if run.rate == best}
    return [(best, seed) for seed in range(seeds) if seed not in done]


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean over seeds and its standard error; None where one seed cannot tell."""

    value: float
    error: float | None


@dataclass(frozen=True, slots=True)
class Summary:
    """A way at its best rate."""

    rate: float
    tried: tuple[float, ...]
    seeds: int
    loss: Mean
    right: Mean
    """Share of the held-out answers."""
    of: int


def summarise(runs: Sequence[Run]) -> Summary:
    """The best rate's figures over its seeds. Raises ValueError where none was asked."""
    rate = best_rate(runs)
    chosen = [run for run in runs if run.rate == rate and run.right is not None]
    shares = [run.right / run.of for run in chosen if run.right is not None]
    tried = tuple(sorted({run.rate for run in runs}))
    losses = [run.held_out_loss for run in chosen]
    return Summary(rate, tried, len(chosen), _mean(losses), _mean(shares), sum(run.of for run in chosen))


def _mean(values: Sequence[float]) -> Mean:
    if not values:
        raise ValueError("no run of the best learning rate was asked")
    return Mean(mean(values), stdev(values) / len(values) ** 0.5 if len(values) > 1 else None)
