"""The checks at the end of a soak find what is planted: each leak is a real one, in a process of its own kind."""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Counter, generate_latest

from loramux_server.store.store import Store
from tests.soak.invariants import EVERY, MORE_MEMORY, Resources, held, leaks, left_behind, told_badly

REGISTRY = CollectorRegistry()
COUNTER = Counter("planted", "Calls.", ["who"], registry=REGISTRY)


def now() -> Resources:
    return Resources.of(os.getpid(), generate_latest(REGISTRY).decode())


@contextmanager
def planted_memory() -> Iterator[None]:
    # Fresh from the system: an allocator may hand out pages that it has never given back.
    held = mmap.mmap(-1, MORE_MEMORY + (64 << 20))
    held.write(b"x" * len(held))
    yield
    held.close()


@contextmanager
def planted_files() -> Iterator[None]:
    opened = [os.open(os.devnull, os.O_RDONLY) for _ in range(40)]
    yield
    for file in opened:
        os.close(file)


@contextmanager
def planted_threads() -> Iterator[None]:
    end = threading.Event()
    threads = [threading.Thread(target=end.wait) for _ in range(40)]
    for thread in threads:
        thread.start()
    yield
    end.set()
    for thread in threads:
        thread.join()


@contextmanager
def planted_series() -> Iterator[None]:
    for i in range(50):
        COUNTER.labels(f"who{i}").inc()
    yield
    COUNTER.clear()


@pytest.mark.parametrize(
    ("plant", "told"),
    [(planted_memory, "memory"), (planted_files, "files"), (planted_threads, "threads"), (planted_series, "series")],
)
def test_a_planted_leak_is_told(plant: object, told: str) -> None:
    before = now()
    assert leaks(before, now(), [], 20) == []
    with plant():  # type: ignore[operator]
        (leak,) = leaks(before, now(), [], 20)
    assert told in leak


def test_memory_that_never_levels_is_told() -> None:
    """Two megabytes every five seconds are a leak; what is taken once at the start, and swings, are none."""
    start = 300 << 20
    level = [(EVERY * i, start + (64 << 20) * (i > 2) + (8 << 20) * (i % 2)) for i in range(48)]
    rising = [(EVERY * i, start + i * (2 << 20)) for i in range(48)]
    before = now()
    assert leaks(before, before, level, 0) == []
    (leak,) = leaks(before, before, rising, 0)
    assert "does not level" in leak


def test_what_the_engine_holds_at_rest_is_told() -> None:
    page = "loramux_requests_running 0.0\nloramux_requests_waiting 0.0\nloramux_kv_cache_usage_ratio 0.0\n"
    assert held(page) == []
    for name in ("requests_running", "requests_waiting", "kv_cache_usage_ratio"):
        assert held(page.replace(f"{name} 0.0", f"{name} 0.5")) == [f"loramux_{name} = 0.5"]
    assert held("") == ["the engine is away"]


def test_what_is_left_on_the_disk_and_in_the_log_is_told(tmp_path: Path) -> None:
    with_store = Store.open(tmp_path / "state")
    assert "the state directory is still in use" in left_behind(tmp_path / "state")
    with_store.close()
    assert left_behind(tmp_path / "state") == []
    (tmp_path / "state" / "tmp" / "compose-1").mkdir()
    (left,) = left_behind(tmp_path / "state")
    assert "compose-1" in left
    assert told_badly(["all is well"], ["secret"]) == []
    assert told_badly(["Traceback (most recent call last):", "key=secret"], ["secret"]) != []
