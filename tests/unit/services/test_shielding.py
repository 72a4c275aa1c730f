"""Work that outlives the cancellation of its caller, and folders that are gone after it."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from loramux_server.services.common.shielding import temporary_folder, to_the_end
from loramux_server.store.store import Store


async def cancelled(task: asyncio.Task[None]) -> bool:
    return isinstance((await asyncio.gather(task, return_exceptions=True))[0], asyncio.CancelledError)


@pytest.mark.parametrize("times", [1, 2, 3])
async def test_work_ends_before_its_caller_does_however_often_that_is_cancelled(times: int) -> None:
    begun, go, done = asyncio.Event(), asyncio.Event(), []

    async def work() -> None:
        begun.set()
        await go.wait()
        done.append(True)

    task = asyncio.create_task(to_the_end(work()))
    await begun.wait()
    for _ in range(times):
        task.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert not task.done()
    go.set()
    assert await cancelled(task)
    assert done


async def test_results_and_errors_are_passed_on() -> None:
    async def work(fails: bool) -> int:
        if fails:
            raise KeyError("x")
        return 7

    assert await to_the_end(work(False)) == 7
    with pytest.raises(KeyError):
        await to_the_end(work(True))


@pytest.mark.parametrize("moment", ["while it is made", "inside"])
async def test_no_folder_is_left_by_a_cancellation(store: Store, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    loop, reached, go = asyncio.get_running_loop(), asyncio.Event(), threading.Event()
    new_tmp = store.state.new_tmp

    def make(prefix: str) -> Path:
        folder = new_tmp(prefix)
        if moment == "while it is made":
            loop.call_soon_threadsafe(reached.set)
            assert go.wait(20)
        return folder

    monkeypatch.setattr(store.state, "new_tmp", make)

    async def use() -> None:
        async with temporary_folder(store, "made") as folder:
            (folder / "file").write_text("x")
            reached.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(use())
    await reached.wait()
    task.cancel()
    go.set()
    assert await cancelled(task)
    assert [*store.state.tmp.iterdir()] == []
