"""News of jobs that no board of this server told: one look at the store serves all who wait."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Collection

import pytest

from loramux_server.core.errors import Code, Error
from loramux_server.services.jobs import watchers
from loramux_server.services.jobs.watchers import Watchers


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchers, "LOOK_SECONDS", 0.01)


class Store:
    """Numbers of the last events, and the looks at them."""

    def __init__(self) -> None:
        self.newest = {"a": 1, "b": 1}
        self.looks = 0
        self.away = False

    def look(self, jobs: Collection[str]) -> dict[str, int]:
        self.looks += 1
        if self.away:
            raise Error(Code.UNAVAILABLE, "the database is away")
        return {job: self.newest[job] for job in jobs if job in self.newest}


async def looked(store: Store, times: int = 2) -> None:
    """Return after so many further looks."""
    until = store.looks + times
    async with asyncio.timeout(10):
        while store.looks < until:  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def test_many_wait_at_the_cost_of_one() -> None:
    store, told = Store(), Counter[str]()
    board = Watchers(store.look)
    ready = asyncio.Event()

    async def wait(job: str) -> None:
        with board.watching(job) as news:
            await ready.wait()
            news.clear()
            await news.wait()
            told[job] += 1

    waiting = [asyncio.create_task(wait(job)) for job in ("a", "b") for _ in range(50)]
    await looked(store)  # what was not known before is told once
    ready.set()
    await looked(store)
    assert not told
    before = store.looks
    store.newest["a"] = 2
    await looked(store)
    assert (told["a"], told["b"]) == (50, 0)
    assert store.looks - before < 20
    board.tell("b")
    await asyncio.gather(*waiting)
    assert told["b"] == 50
    looks = store.looks
    await asyncio.sleep(0.05)
    assert store.looks == looks  # nobody waits, nothing is looked for
    assert "a" not in board


async def test_who_waits_is_woken_when_the_store_is_away() -> None:
    store = Store()
    board = Watchers(store.look)
    with board.watching("a") as news:
        await looked(store)
        news.clear()
        store.away = True
        async with asyncio.timeout(10):
            await news.wait()


async def test_a_job_that_moved_before_the_first_look_is_told() -> None:
    store = Store()
    board = Watchers(store.look)
    with board.watching("a"):
        await looked(store)
        with board.watching("b") as news:
            async with asyncio.timeout(10):
                await news.wait()
