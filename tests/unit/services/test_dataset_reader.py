"""Rows of stored datasets: large ones are checked in a process, which ends when nobody waits for it."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from loramux_server.core.errors import Code, Error
from loramux_server.core.watch import UNWATCHED, Watch
from loramux_server.data.dataset import Dataset, DatasetLimits, check_dataset
from loramux_server.data.problems import Problems
from loramux_server.services.common.workers import compute
from loramux_server.services.datasets import reader as rows
from loramux_server.services.datasets.reader import LARGE, read_rows
from loramux_server.text import TextTokenizer
from tests.examples import few

CHAT = [{"role": "user", "content": "Where is 東?"}, {"role": "assistant", "content": "Here 🙂."}]


def written(path: Path, kinds: list[Any], size: int) -> bytes:
    data = b""
    line = b"".join(json.dumps(row).encode() + b"\n" for row in kinds)
    data = line * (size // len(line) + 1)
    path.write_bytes(data)
    return data


def read(path: Path, text: TextTokenizer, watch: Watch = UNWATCHED, **limits: int) -> tuple[Dataset, Problems]:
    return read_rows(path, text, 256, "data", DatasetLimits(**limits), watch)


@pytest.mark.parametrize(
    "kinds",
    few(
        [
            [
                {"messages": CHAT, "on_top_of": {"acme": 1.5}},
                {"prompt": "a", "completion": "b", "on_top_of": []},
                {"text": "word " * 300},
                {"x": "\ud800"},
            ],
            [{"prompt": "Where is it?", "chosen": " Here.", "rejected": " There."}],
            [{"x": 1}],
        ]
    ),
    ids=["rows", "pairs", "bad"],
)
def test_field_01_a_process_finds_what_is_found_here(tmp_path: Path, text: TextTokenizer, kinds: list[Any]) -> None:
    data = written(tmp_path / "data", kinds, LARGE)
    assert len(data) > LARGE
    here, problems = check_dataset(data, text, max_length=256)
    there, same = read(tmp_path / "data", text)
    assert there == here
    assert (same.field, same.count, same.listed()) == ("data", problems.count, problems.listed())


def test_field_01_a_process_refuses_as_here(tmp_path: Path, text: TextTokenizer) -> None:
    written(tmp_path / "data", [{"text": "a b"}], LARGE)
    with pytest.raises(Error, match="has more than 5 rows") as caught:
        read(tmp_path / "data", text, max_rows=5)
    assert (caught.value.code, caught.value.reason) == (Code.INVALID_ARGUMENT, "DATASET_INVALID")
    assert [violation.field for violation in caught.value.violations] == ["data"]


class Noticed(Watch):
    """Tells when a process has begun, and which."""

    def __init__(self, begun: Callable[[int], object]) -> None:
        super().__init__()
        self._begun = begun

    @contextmanager
    def ending(self, act: Callable[[], object]) -> Iterator[None]:
        with super().ending(act):
            self._begun(act.__self__.pid)  # type: ignore[attr-defined]
            yield


async def test_field_01_a_check_that_nobody_waits_for_ends(tmp_path: Path, text: TextTokenizer) -> None:
    written(tmp_path / "data", [{"messages": CHAT * 30}], 64 * LARGE)  # minutes of work
    loop, begun, ended = asyncio.get_running_loop(), asyncio.Event(), threading.Event()
    child = 0

    def started(pid: int) -> None:
        nonlocal child
        child = pid
        loop.call_soon_threadsafe(begun.set)

    def work(watch: Watch) -> None:
        noticed = Noticed(started)
        with watch.ending(noticed.end):
            try:
                read(tmp_path / "data", text, noticed)
            finally:
                ended.set()

    task = asyncio.create_task(compute(work))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await asyncio.to_thread(ended.wait, 60)
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


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


def test_a_check_that_dies_is_told(tmp_path: Path, text: TextTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path / "data", [{"text": "a b"}], LARGE)
    monkeypatch.setattr(rows, "MODULE", "loramux_server.core.errors")  # says nothing
    with pytest.raises(Error) as caught:
        read(tmp_path / "data", text)
    assert (caught.value.code, caught.value.reason) == (Code.INTERNAL, "DATASET_CHECK_DIED")


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
