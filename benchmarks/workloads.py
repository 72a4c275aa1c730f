"""What is asked of every system: prompts, stacks, and how many requests at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from .samples import Sample

ADAPTERS = 16
RANK = 16
KINDS = ("base", "one", "adapters", "stacks")
TITLES = {
    "base": "base only",
    "one": "one adapter",
    "adapters": f"{ADAPTERS} different adapters",
    "stacks": f"{ADAPTERS} different two-adapter stacks",
}
LEVELS = (1, 16, 64)

Stack = tuple[tuple[int, float], ...]
"""(number of the adapter, weight) pairs; empty is the base."""

SENTENCES = (
    "Write a short note that thanks a neighbour for watering the plants during a long holiday.",
    "Keep it friendly and plain, and mention the tomatoes, which did better than anybody had hoped.",
    "Explain in simple words why the sky is blue at noon and red in the evening.",
    "List some things to check before a long bicycle ride through hilly country.",
    "Describe a quiet morning in a harbour town before the first boats come in.",
    "Somebody who has never been there should be able to picture the place afterwards.",
    "Say what you would pack for a week of rain, and what you would leave at home.",
)


@dataclass(frozen=True, slots=True)
class Ask:
    """One request: greedy, exactly ``tokens`` new tokens, whatever the model would rather do."""

    prompt: str
    stack: Stack
    tokens: int


@dataclass(frozen=True, slots=True)
class Cell:
    """One workload: requests of a kind, ``concurrency`` of them at any time, each of ``tokens`` new tokens."""

    kind: str
    concurrency: int
    requests: int
    tokens: int

    @property
    def name(self) -> str:
        return f"{self.kind}@{self.concurrency}"

    def asks(self) -> list[Ask]:
        """The requests. No two of a run begin alike, so that no system gains by having seen a prompt before."""
        return [Ask(prompt(i, self.name), stack(self.kind, i), self.tokens) for i in range(self.requests)]

    def warm_up(self) -> list[Ask]:
        """A few short requests under the same stacks, not counted."""
        count = min(self.concurrency, ADAPTERS)
        return [Ask(prompt(i, f"warm {self.name}"), stack(self.kind, i), 2) for i in range(count)]

    @property
    def distinct(self) -> int:
        """Adapters that a step must read: those of all requests that run at once."""
        return len({adapter for i in range(self.concurrency) for adapter, _ in stack(self.kind, i)})

    @property
    def depth(self) -> int:
        """Adapters in each request's stack."""
        return len(stack(self.kind, 0))


def stack(kind: str, i: int) -> Stack:
    """The stack of request ``i``."""
    if kind == "base":
        return ()
    if kind == "one":
        return ((0, 1.0),)
    if kind == "adapters":
        return ((i % ADAPTERS, 1.0),)
    if kind == "stacks":
        return ((i % ADAPTERS, 1.0), ((i + 5) % ADAPTERS, 0.5))
    raise ValueError(f"unknown kind of workload {kind!r}; one of {', '.join(KINDS)}")


def prompt(i: int, mark: str) -> str:
    """A prompt of one to four sentences that starts with ``i`` and ``mark``."""
    body = (SENTENCES[(i + j) % len(SENTENCES)] for j in range(1 + i % 4))
    return f"{i} ({mark}). {' '.join(body)}"


def cells(wanted: Sequence[str], rounds: int, tokens: int) -> list[Cell]:
    """The workloads that ``wanted`` names (``base@16``, ``stacks``, ``@64``; empty: all), in the table's order.

    Raises ValueError for a name that matches none.
    """
    every = [Cell(k, n, max(rounds * n, 4 if rounds > 1 else 2), tokens) for k in KINDS for n in LEVELS]

    def matches(cell: Cell, name: str) -> bool:
        kind, _, level = name.partition("@")
        return kind in ("", cell.kind) and level in ("", str(cell.concurrency))

    for name in wanted:
        if not name or not any(matches(cell, name) for cell in every):
            raise ValueError(f"no workload is called {name!r}; they are KIND@N of {KINDS} and {LEVELS}")
    return [cell for cell in every if not wanted or any(matches(cell, name) for name in wanted)]


async def closed_loop(
    asks: Sequence[Ask], concurrency: int, one: Callable[[Ask], Awaitable[Sample]]
) -> tuple[list[Sample], float]:
    """Run all requests, ``concurrency`` at any time: samples in the order of ``asks``, and the seconds it took."""
    gate = asyncio.Semaphore(concurrency)

    async def gated(ask: Ask) -> Sample:
        async with gate:
            return await one(ask)

    begin = time.perf_counter()
    samples = await asyncio.gather(*map(gated, asks))
    return list(samples), time.perf_counter() - begin
