"""What is another tenant's takes the time of what does not exist: distributions of times, and not single ones.

The two are asked for in turns, so that whatever else this machine does falls on both alike.
"""

from __future__ import annotations

import asyncio
import bisect
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import pytest

from loramux_server.core.callers.principal import Principal
from loramux_server.core.errors import Error
from loramux_server.core.jobs import JobRequest
from loramux_server.services.adapters.service import AdapterService
from loramux_server.services.common.context import Context
from loramux_server.services.jobs.board import JobBoard
from loramux_server.services.jobs.service import TrainingService
from loramux_server.store.records import AdapterMeta
from loramux_server.store.store import Store

from .adapter_files import write_adapter
from .fakes import caller

SAMPLES = 250
LIMIT = 0.12
"""Furthest from a half that the chance may be: more than four standard errors of so many samples that are alike."""
ANN, BOB = caller("ann"), caller("bob")
NARROW = Principal("ann", ANN.scopes, adapters=frozenset({"mine"}))

Ask = Callable[[str, Principal], Awaitable[object]]


async def times_of(ask: Ask, names: Sequence[str], principal: Principal, late: float = 0.0) -> list[list[float]]:
    """Seconds until each name was refused, many times in turns; the first one ``late`` seconds more."""
    found: list[list[float]] = [[] for _ in names]
    for turn in range(SAMPLES + 20):
        order = range(len(names)) if turn % 2 else reversed(range(len(names)))
        for which in order:
            started = time.perf_counter()
            if late and which == 0:
                await asyncio.sleep(late)
            with pytest.raises(Error):
                await ask(names[which], principal)
            if turn >= 20:  # the first ones pay for what is done once
                found[which].append(time.perf_counter() - started)
    return found


def chance_of_less(these: list[float], those: list[float]) -> float:
    """How often one of ``these`` is less than one of ``those`` (Mann and Whitney's U over all pairs); a half: alike."""
    those = sorted(those)
    return 1 - sum(bisect.bisect(those, one) for one in these) / (len(these) * len(those))


def test_the_chance_is_a_half_for_what_is_alike() -> None:
    same = [float(i) for i in range(100)]
    assert chance_of_less(same, same) == pytest.approx(0.5, abs=0.01)
    assert chance_of_less([i + 1000 for i in same], same) == 0
    assert chance_of_less(same, [i + 1000 for i in same]) == 1


@pytest.fixture
async def asked(context: Context, store: Store, tmp_path: Path) -> dict[str, tuple[Ask, str, str]]:
    """By kind: how one is asked for, another tenant's, and an absent one."""
    adapters, training = AdapterService(context), TrainingService(context, JobBoard(store))
    store.adapters.publish("anns", "ann", write_adapter(tmp_path / "anns", context.info), AdapterMeta(2, 4.0))
    (tmp_path / "rows").write_bytes(b'{"prompt": "a", "completion": "b"}\n' * 1000)
    dataset = store.datasets.put(tmp_path / "rows", "ann").id
    # A job whose row and events would take long to read.
    metadata = {f"{i}": "x" * 4000 for i in range(64)}
    job = store.jobs.create(JobRequest("anns", dataset, "ann", metadata=metadata)).id
    return {
        "adapter": (adapters.get, "anns", "nobd"),
        "job": (training.get_job, job, f"job-{'0' * 20}"),
        "dataset": (lambda id, who: training.validate_dataset(id, who), dataset, f"ds-{'0' * 16}"),
    }


@pytest.mark.parametrize("kind", ["adapter", "job", "dataset"])
async def test_anothers_object_takes_the_time_of_an_absent_one(
    asked: dict[str, tuple[Ask, str, str]], kind: str
) -> None:
    ask, theirs, absent = asked[kind]
    assert abs(chance_of_less(*await times_of(ask, (theirs, absent), BOB)) - 0.5) < LIMIT


@pytest.mark.parametrize("kind", ["adapter", "job"])
async def test_what_is_not_on_the_list_takes_the_time_of_an_absent_one(
    asked: dict[str, tuple[Ask, str, str]], kind: str
) -> None:
    ask, theirs, absent = asked[kind]
    assert abs(chance_of_less(*await times_of(ask, (theirs, absent), NARROW)) - 0.5) < LIMIT


async def test_two_milliseconds_would_be_seen(asked: dict[str, tuple[Ask, str, str]]) -> None:
    ask, theirs, absent = asked["adapter"]
    assert chance_of_less(*await times_of(ask, (theirs, absent), BOB, late=0.002)) < 0.5 - LIMIT


def operations(work: Callable[[], object]) -> list[tuple[str, str]]:
    """What ``work`` does with files, as the interpreter's audit hooks tell: names of what is done, and of what kind."""
    seen: list[tuple[str, str]] = []
    here = threading.get_ident()
    watching = True

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if watching and threading.get_ident() == here and event.startswith(("open", "os.", "shutil.")):
            seen.append((event, Path(str(arguments[0])).parent.parent.name if arguments else ""))

    sys.addaudithook(hook)  # for good: it looks away afterwards
    try:
        work()
    finally:
        watching = False
    return seen


def put(store: Store, path: Path, content: bytes, tenant: str) -> Callable[[], object]:
    path.write_bytes(content)
    return lambda: store.datasets.put(path, tenant)


def test_the_bytes_of_anothers_dataset_are_stored_as_new_ones_are(store: Store, tmp_path: Path) -> None:
    """Files are named by content, so these are there already: nobody looks at them, not even to leave them alone."""
    put(store, tmp_path / "a", b"known", "ann")()
    known = operations(put(store, tmp_path / "b", b"known", "bob"))
    assert known == operations(put(store, tmp_path / "c", b"fresh", "bob"))
    assert any(event == "os.rename" for event, _ in known)


@pytest.mark.slow
def test_the_bytes_of_anothers_dataset_are_stored_in_the_time_of_new_ones(store: Store, tmp_path: Path) -> None:
    """What is seen must be seen each time: the disk of a busy machine has moods."""
    size, samples, error = 2 << 20, 60, 0.053
    seen: list[float] = []
    for turn in range(3):
        for i in range(samples):
            put(store, tmp_path / f"known{turn}-{i}", b"%d %8d" % (turn, i) + b"x" * size, "ann")()
        found: dict[str, list[float]] = {"x": [], "y": []}
        for i in range(samples):
            for kind in "xy" if i % 2 else "yx":
                content = b"%d %8d" % (turn, i) + kind.encode() * size
                work = put(store, tmp_path / f"{kind}{turn}-{i}", content, "bob")
                started = time.perf_counter()
                work()
                found[kind].append(time.perf_counter() - started)
        seen.append(chance_of_less(found["x"], found["y"]) - 0.5)
        if abs(seen[-1]) < 4 * error:
            return
    pytest.fail(f"the bytes of another's dataset are seen by the time: {seen}")
