"""A scrape while the engine or the database is away: what is not known is left out, the rest stays."""

from __future__ import annotations

import asyncio
import threading
import urllib.request
from collections.abc import Callable, Collection
from pathlib import Path

import pytest

from loramux_server.app.scrape import names_from_thread, stats_from_thread
from loramux_server.core.backend import EnginePhase, EngineState, EngineStats
from loramux_server.core.errors import Code, Error
from loramux_server.core.settings import EngineSettings
from loramux_server.engine.transport import process as process_backend
from loramux_server.engine.transport.process import ProcessBackend
from loramux_server.store.records import AdapterMeta, VersionRecord, VersionState
from loramux_server.telemetry.endpoint import MetricsEndpoint
from loramux_server.telemetry.metrics import Metrics
from loramux_server.telemetry.metrics.reading import NamedVersion, Names
from tests.unit.services.fakes import FakeBackend, engine_info


def page(port: int) -> dict[str, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}


def test_field_10_metrics_while_the_engine_restarts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine's process dies while it is asked for its figures, and is started again."""
    monkeypatch.setattr(process_backend, "MODULE", "tests.unit.engine.bad_child")

    async def life() -> tuple[dict[str, float], ...]:
        settings = EngineSettings(model="once:no message", state_dir=str(tmp_path))
        backend, metrics, up = ProcessBackend(settings), Metrics("0"), asyncio.Event()

        away: list[EngineState] = []

        def changed(state: EngineState) -> None:
            if state.phase is EnginePhase.RESTARTING:
                away.append(state)
                metrics.engine_moved(False)
            elif away:
                metrics.engine_moved(True)
                up.set()

        backend.subscribe(changed)
        endpoint = MetricsEndpoint(metrics.registry, metrics.for_routers, "127.0.0.1", 0)
        endpoint.start()
        try:
            before = await asyncio.to_thread(page, endpoint.port)
            info = await backend.start()
            metrics.engine_ready(info, stats_from_thread(backend, asyncio.get_running_loop(), 30))
            during = await asyncio.to_thread(page, endpoint.port)
            await asyncio.wait_for(up.wait(), 60)
            after = await asyncio.to_thread(page, endpoint.port)
        finally:
            await backend.close()
            metrics.engine_gone()
            last = await asyncio.to_thread(page, endpoint.port)
            await asyncio.to_thread(endpoint.stop)
        return before, during, after, last

    pages = asyncio.run(life())
    figures = [
        tuple(page.get(f"loramux_{name}") for name in ("engine_up", "engine_restarts_total", "requests_running"))
        for page in pages
    ]
    assert figures == [(0, 0, None), (0, 0, None), (1, 1, 5), (0, 1, None)]
    assert all("loramux_process_resident_memory_bytes" in page for page in pages)


@pytest.mark.parametrize("code", [Code.UNAVAILABLE, Code.INTERNAL])
def test_no_error_of_the_engine_reaches_the_scrape(code: Code) -> None:
    class Failing(FakeBackend):
        async def stats(self) -> EngineStats:
            raise Error(code, "gone")

    async def life() -> EngineStats | None:
        fetch = stats_from_thread(Failing(engine_info(8)), asyncio.get_running_loop())
        return await asyncio.to_thread(fetch)

    assert asyncio.run(life()) is None


def test_a_busy_engine_leaves_the_last_figures_and_no_call_behind() -> None:
    asked: list[asyncio.Task[object] | None] = []

    class Busy(FakeBackend):
        async def stats(self) -> EngineStats:
            asked.append(asyncio.current_task())
            if len(asked) > 1:
                await asyncio.Event().wait()
            return EngineStats(running=7)

    async def life() -> tuple[EngineStats | None, ...]:
        fetch = stats_from_thread(Busy(engine_info(8)), asyncio.get_running_loop(), 0.05)
        found = await asyncio.to_thread(fetch), await asyncio.to_thread(fetch)
        assert asked[1] is not None
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(asked[1], 10)
        return found

    assert [stats and stats.running for stats in asyncio.run(life())] == [7, 7]


class Adapters:
    """The registry of adapters as a scrape asks it: ``answer`` runs on a thread, as the database does."""

    def __init__(self, answer: Callable[[], tuple[VersionRecord, ...]]) -> None:
        self.adapters, self.answer, self.asked = self, answer, 0

    def versions_with(self, digests: Collection[str]) -> tuple[VersionRecord, ...]:
        self.asked += 1
        return self.answer()


def record(name: str, digest: str, **more: bool) -> VersionRecord:
    return VersionRecord(name, "default", 3, digest, VersionState.READY, 1, AdapterMeta(16, 32.0), 0.0, **more)


def test_names_outlast_an_outage_of_the_database() -> None:
    def away() -> tuple[VersionRecord, ...]:
        raise Error(Code.UNAVAILABLE, "the database does not answer")

    async def life() -> list[Names]:
        found = (record("acme", "a", current=True, pinned=True), record("copy", "a"), record("json", "b"))
        store = Adapters(lambda: found)
        look_up = names_from_thread(store, asyncio.get_running_loop())  # type: ignore[arg-type]
        names = [await asyncio.to_thread(look_up, {"a", "b"})]
        store.answer = away
        return [*names, await asyncio.to_thread(look_up, {"a", "b"})]

    before, during = asyncio.run(life())
    assert before == during
    assert before == {
        "a": [NamedVersion("acme", 3, 16, current=True, pinned=True), NamedVersion("copy", 3, 16, False, False)],
        "b": [NamedVersion("json", 3, 16, False, False)],
    }


def test_a_slow_database_holds_no_scrape_up_and_is_not_asked_twice() -> None:
    async def life() -> tuple[Names, Names, int, Names]:
        answer = threading.Event()

        def slow() -> tuple[VersionRecord, ...]:
            assert answer.wait(30)
            return (record("acme", "a"),)

        store = Adapters(slow)
        look_up = names_from_thread(store, asyncio.get_running_loop(), 0.05)  # type: ignore[arg-type]
        first, second = [await asyncio.to_thread(look_up, {"a"}) for _ in range(2)]
        asked = store.asked
        answer.set()
        names: Names = {}
        while not names:
            names = await asyncio.to_thread(look_up, {"a"})
        return first, second, asked, names

    first, second, asked, names = asyncio.run(life())
    assert (first, second, asked) == ({}, {}, 1)
    assert [version.name for version in names["a"]] == ["acme"]
