"""What is asked."""

from __future__ import annotations

import asyncio

import pytest

from benchmarks.samples import Sample
from benchmarks.workloads import ADAPTERS, KINDS, LEVELS, Ask, Cell, cells, closed_loop, stack


def test_stacks_of_a_round_are_all_different() -> None:
    assert {stack("base", i) for i in range(64)} == {()}
    assert {stack("one", i) for i in range(64)} == {((0, 1.0),)}
    for kind, depth in (("adapters", 1), ("stacks", 2)):
        stacks = {stack(kind, i) for i in range(64)}
        assert len(stacks) == ADAPTERS
        assert all(len({adapter for adapter, _ in s}) == depth for s in stacks)
    with pytest.raises(ValueError, match="unknown kind"):
        stack("many", 0)


@pytest.mark.parametrize(
    ("kind", "concurrency", "distinct", "depth"),
    [("base", 16, 0, 0), ("one", 64, 1, 1), ("adapters", 1, 1, 1), ("adapters", 64, 16, 1), ("stacks", 1, 2, 2)],
)
def test_adapters_that_a_step_reads(kind: str, concurrency: int, distinct: int, depth: int) -> None:
    cell = Cell(kind, concurrency, concurrency, 8)
    assert (cell.distinct, cell.depth) == (distinct, depth)


def test_no_two_prompts_of_a_run_begin_alike() -> None:
    every = [ask for cell in cells([], 2, 8) for ask in (*cell.asks(), *cell.warm_up())]
    assert len({ask.prompt.partition(".")[0] for ask in every}) == len(every)


def test_workloads_are_chosen_by_either_half_of_their_name() -> None:
    assert [c.name for c in cells([], 1, 8)] == [f"{k}@{n}" for k in KINDS for n in LEVELS]
    assert [c.name for c in cells(["stacks", "@64", "base@1"], 1, 8)] == [
        *("base@1", "base@64", "one@64", "adapters@64", "stacks@1", "stacks@16", "stacks@64")
    ]


@pytest.mark.parametrize("name", ["", "many", "base@2", "@7", "base@x"])
def test_a_name_of_no_workload_is_told(name: str) -> None:
    with pytest.raises(ValueError, match="no workload is called"):
        cells(["base", name], 1, 8)


def test_requests_fill_whole_rounds() -> None:
    assert {(c.concurrency, c.requests) for c in cells([], 2, 8)} == {(1, 4), (16, 32), (64, 128)}
    assert {(c.concurrency, c.requests) for c in cells([], 1, 8)} == {(1, 2), (16, 16), (64, 64)}


async def test_the_loop_keeps_as_many_running_as_asked_and_the_order_of_answers() -> None:
    running: list[int] = []
    most = 0

    async def one(ask: Ask) -> Sample:
        nonlocal most
        running.append(ask.tokens)
        most = max(most, len(running))
        # The later ones end first.
        for _ in range(20 - ask.tokens):
            await asyncio.sleep(0)
        running.remove(ask.tokens)
        return Sample(0.0, (), (ask.tokens,))

    samples, seconds = await closed_loop([Ask("", (), n) for n in range(10)], 3, one)
    assert [s.tokens for s in samples] == [(n,) for n in range(10)]
    assert most == 3
    assert seconds > 0
