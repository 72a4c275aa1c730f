"""Work on stored datasets: large ones have a process, which ends when nobody waits for it."""

from __future__ import annotations

import asyncio
import json
import os
import queue
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from loramux_server.core.errors import Code, Error
from loramux_server.core.jobs import JobRequest, TrainSpec
from loramux_server.core.watch import Watch
from loramux_server.data.rows_file import find_rows
from loramux_server.services.common.context import Context
from loramux_server.services.common.limits import Limits
from loramux_server.services.common.workers import compute
from loramux_server.services.datasets import worker as workers
from loramux_server.services.datasets.stored_rows import StoredRows, stored_rows
from loramux_server.services.datasets.worker import LARGE, DatasetWorker
from tests.examples import few

CHAT = [{"role": "user", "content": "Where is 東?"}, {"role": "assistant", "content": "Here 🙂."}]
KINDS: dict[str, list[Any]] = {
    "rows": [
        {"messages": CHAT, "on_top_of": {"acme": 1.5}, "expect": "Here"},
        {"prompt": "a", "completion": "b", "on_top_of": []},
        {"text": "word"},
    ],
    "pairs": [{"prompt": "Where is it?", "chosen": " Here.", "rejected": " There."}],
    "bad": [{"x": 1}, {"text": "word " * 300}, {"x": "\ud800"}, {"text": "good"}],
}


LARGER = 16 * 1024
"""Bytes of a dataset that has a process here."""


@pytest.fixture(autouse=True)
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second of work for each process would show no more."""
    monkeypatch.setattr(workers, "LARGE", LARGER - 1)


@pytest.fixture
def worker(context: Context) -> DatasetWorker:
    return DatasetWorker(context)


def stored(context: Context, kinds: list[Any], size: int, tmp_path: Path) -> str:
    """A dataset of so many bytes at least; every row is another one."""
    rows: list[bytes] = []
    while sum(map(len, rows)) <= size:
        kind = kinds[len(rows) % len(kinds)]
        text = json.dumps(kind).replace("word", f"word {len(rows)}").replace("Where", f"Where {len(rows)}")
        rows.append(text.encode() + b"\n")
        if len(rows) == 64:  # the rest are these again
            rows *= size // sum(map(len, rows)) + 1
            break
    path = tmp_path / "data.jsonl"
    path.write_bytes(b"".join(rows))
    return context.store.datasets.put(path, "default").id


async def rows_of(worker: DatasetWorker, dataset: str, folder: Path, **more: Any) -> StoredRows:
    await asyncio.to_thread(folder.mkdir)
    request = JobRequest("acme", dataset, "default", TrainSpec(validation_split=0.25), **more)
    summary = await worker.make_rows(request, folder)
    found = await asyncio.to_thread(stored_rows, folder, "f" * 64)
    assert found.summary == summary
    return found


def process_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*given: object) -> None:
        raise AssertionError("not in a process")

    monkeypatch.setattr(workers, "carry_out", fail)


@pytest.mark.parametrize("kind", few(list(KINDS)))
async def test_field_01_a_process_finds_what_is_found_here(
    context: Context, worker: DatasetWorker, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = stored(context, KINDS[kind], LARGER, tmp_path)
    with monkeypatch.context() as without:
        without.setattr(workers, "LARGE", 1 << 30)
        here = await worker.check("default", TrainSpec(), dataset, dataset, show=3, from_line=2)
    process_only(monkeypatch)
    assert await worker.check("default", TrainSpec(), dataset, dataset, show=3, from_line=2) == here
    assert here.report.rows > 0
    assert len(here.shown) == 3
    assert bool(here.problems.count) is (kind == "bad")


@pytest.mark.parametrize("kind", ["rows", "pairs"])
async def test_a_process_writes_the_rows_that_are_written_here(
    context: Context, worker: DatasetWorker, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Byte for byte."""
    dataset = stored(context, KINDS[kind], LARGER, tmp_path)
    with monkeypatch.context() as without:
        without.setattr(workers, "LARGE", 1 << 30)
        here = await rows_of(worker, dataset, tmp_path / "here", compare_prompt="Be brief.")
    process_only(monkeypatch)
    there = await rows_of(worker, dataset, tmp_path / "there", compare_prompt="Be brief.")
    assert there.file.sha256 == here.file.sha256
    assert here.summary.held_out is not None
    assert here.summary.asked
    assert len(here.content.tables["prompted"]) == len(here.summary.asked)


@pytest.mark.slow
async def test_field_01_a_process_refuses_as_here(context: Context, tmp_path: Path) -> None:
    dataset = stored(context, [{"text": "word"}], LARGER, tmp_path)
    small = DatasetWorker(replace(context, limits=Limits(max_dataset_rows=5)))
    checked = await small.check("default", TrainSpec(), dataset)
    assert [why for why in checked.refused if "has more than 5 rows" in why]
    with pytest.raises(Error, match="has more than 5 rows") as caught:
        await small.make_rows(JobRequest("acme", dataset, "default"), tmp_path)
    assert (caught.value.code, caught.value.reason) == (Code.INVALID_ARGUMENT, "DATASET_INVALID")
    assert [violation.field for violation in caught.value.violations] == ["data"]


class Noticed(subprocess.Popen[bytes]):
    """Processes that were started, and whether they have ended."""

    started: ClassVar[queue.SimpleQueue[Noticed]] = queue.SimpleQueue()

    def __init__(self, *given: Any, **more: Any) -> None:
        super().__init__(*given, **more)
        self.ended = threading.Event()
        self.started.put(self)

    def __exit__(self, *given: Any) -> None:
        super().__exit__(*given)
        self.ended.set()


async def test_field_01_a_check_that_nobody_waits_for_ends(
    context: Context, worker: DatasetWorker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One process at a time; for a check that waits for its turn none is started once nobody waits for it."""
    dataset = stored(context, [{"messages": CHAT * 30}], 64 * LARGE, tmp_path)  # minutes of work
    monkeypatch.setattr(workers.subprocess, "Popen", Noticed)
    tasks = [asyncio.create_task(worker.check("default", TrainSpec(), dataset)) for _ in range(3)]
    child = await asyncio.to_thread(Noticed.started.get)
    for task in tasks:
        task.cancel()
    assert all(isinstance(e, asyncio.CancelledError) for e in await asyncio.gather(*tasks, return_exceptions=True))
    assert await asyncio.to_thread(child.ended.wait, 60)
    with pytest.raises(ProcessLookupError):
        os.kill(child.pid, 0)
    small = stored(context, [{"text": "word"}], LARGER, tmp_path)
    assert (await worker.check("default", TrainSpec(), small)).report.rows > 0
    assert (await asyncio.to_thread(Noticed.started.get)).returncode == 0
    assert Noticed.started.empty()


async def test_field_01_rows_on_a_thread_end_when_nobody_waits() -> None:
    begun, ended = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def work(watch: Watch) -> None:
        loop.call_soon_threadsafe(begun.set)
        try:
            while True:
                watch()
        finally:
            ended.set()

    task = asyncio.create_task(compute(work))
    await begun.wait()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(task, 0)
    assert await asyncio.to_thread(ended.wait, 60)


async def test_a_check_that_dies_is_told(
    context: Context, worker: DatasetWorker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = stored(context, [{"text": "word"}], LARGER, tmp_path)
    monkeypatch.setattr(workers, "MODULE", "loramux_server.core.errors")  # says nothing
    with pytest.raises(Error) as caught:
        await worker.check("default", TrainSpec(), dataset)
    assert (caught.value.code, caught.value.reason) == (Code.INTERNAL, "DATASET_CHECK_DIED")


@pytest.mark.parametrize("size", [100, LARGER], ids=["small", "large"])
@pytest.mark.slow
async def test_a_file_that_was_not_written_is_none(
    size: int, context: Context, worker: DatasetWorker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = stored(context, [{"prompt": "Where", "completion": "here"}], size, tmp_path)
    monkeypatch.setenv("LORAMUX_FAILPOINT", "rows.written:raise")
    folder = tmp_path
    with pytest.raises(Error, match="cannot write the rows of the job") as caught:
        await worker.make_rows(JobRequest("acme", dataset, "default"), folder)
    assert caught.value.code is Code.UNAVAILABLE
    with pytest.raises(Error, match="the job has no rows file"):
        find_rows(folder)


def test_field_01_a_thread_that_computes_does_not_hold_the_end_of_the_process() -> None:
    script = """
import asyncio, threading
from loramux_server.__main__ import _leave_threads
from loramux_server.services.common.workers import compute
async def main():
    begun = asyncio.Event()
    loop = asyncio.get_running_loop()
    def work(watch):
        loop.call_soon_threadsafe(begun.set)
        threading.Event().wait()
    task = asyncio.create_task(compute(work))
    await begun.wait()
    task.cancel()
    print("left", flush=True)
asyncio.run(main())
_leave_threads(7)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.returncode) == ("left\n", 7)
