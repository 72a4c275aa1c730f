"""Streams read as one: order, ends, failures, and that nothing stays open."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest

from loramux_server.services.inference.stream_mux import Merge, Single, read_together


class Streams:
    def __init__(self) -> None:
        self.open = 0
        self.ahead = 0

    async def counting(self, count: int, *, fails: bool = False, hangs: bool = False) -> AsyncGenerator[int]:
        self.open += 1
        try:
            for i in range(count):
                self.ahead += 1
                yield i
            if fails:
                raise ValueError("broken")
            if hangs:
                await asyncio.Event().wait()
        finally:
            self.open -= 1


async def test_each_stream_keeps_its_order_and_ends_once() -> None:
    streams = Streams()
    merge = Merge([streams.counting(3), streams.counting(0), streams.counting(5)])
    seen: dict[int, list[int | None]] = {0: [], 1: [], 2: []}
    for _ in range(3 + 0 + 5 + 3):
        index, event = await merge.next()
        seen[index].append(event)
    assert seen == {0: [0, 1, 2, None], 1: [None], 2: [0, 1, 2, 3, 4, None]}
    await merge.aclose()
    assert streams.open == 0


async def test_a_slow_reader_holds_the_streams_back() -> None:
    streams = Streams()
    merge = Merge([streams.counting(1000), streams.counting(1000)])
    await merge.next()
    for _ in range(50):
        await asyncio.sleep(0)
    assert streams.ahead <= 6
    await merge.aclose()
    assert streams.open == 0


async def test_a_failure_reaches_the_reader_unless_its_stream_was_stopped() -> None:
    streams = Streams()
    merge = Merge([streams.counting(0, fails=True)])
    with pytest.raises(ValueError, match="broken"):
        await merge.next()
    await merge.aclose()

    merge = Merge([streams.counting(0, fails=True), streams.counting(1)])
    await asyncio.sleep(0)
    await merge.stop(0)
    assert await merge.next() == (1, 0)
    await merge.aclose()
    assert streams.open == 0


async def test_stopping_one_leaves_the_other() -> None:
    streams = Streams()
    merge = Merge([streams.counting(1, hangs=True), streams.counting(2, hangs=True)])
    await merge.next()
    await merge.stop(0)
    assert streams.open == 1
    assert (await merge.next())[0] == 1
    await merge.aclose()
    assert streams.open == 0


async def test_one_stream_is_read_without_a_task_of_its_own() -> None:
    streams = Streams()
    before = len(asyncio.all_tasks())
    single = read_together([streams.counting(2)])
    assert isinstance(single, Single)
    assert [await single.next() for _ in range(3)] == [(0, 0), (0, 1), (0, None)]
    assert len(asyncio.all_tasks()) == before
    await single.aclose()
    assert streams.open == 0
    assert isinstance(read_together([streams.counting(1), streams.counting(1)]), Merge)


async def test_one_stream_fails_stops_and_closes_as_several_do() -> None:
    streams = Streams()
    failing = Single(streams.counting(0, fails=True))
    with pytest.raises(ValueError, match="broken"):
        await failing.next()
    await failing.aclose()

    stopped = Single(streams.counting(5))
    await stopped.next()
    await stopped.stop(0)
    assert streams.open == 0
    await stopped.aclose()


async def test_a_cancelled_read_closes_the_one_stream() -> None:
    streams = Streams()
    single = Single(streams.counting(0, hangs=True))
    task = asyncio.create_task(single.next())
    await asyncio.sleep(0)
    assert streams.open == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert streams.open == 0
    await single.aclose()
