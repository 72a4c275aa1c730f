"""The registry's database goes away and comes back: what was asked for before goes on."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import structlog

from loramux_server.core.backend import EngineInfo
from loramux_server.core.callers.principal import Principal
from loramux_server.core.errors import Code, Error
from loramux_server.core.jobs import JobState
from loramux_server.core.observing.outage import FIRST, Outage
from loramux_server.core.types import StackItem
from loramux_server.services.adapters.collector import Collector
from loramux_server.services.common.stacks import StackResolver
from loramux_server.store.adapters.usage import FLUSH_SECONDS
from loramux_server.store.records import AdapterMeta
from loramux_server.store.schema import adapter_versions
from loramux_server.store.store import Store
from loramux_server.text import TextTokenizer

from .test_training_jobs import Server, states


def publish(store: Store, name: str, root: Path) -> None:
    folder = root / name
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_bytes(name.encode())
    store.adapters.publish(name, "t", folder, AdapterMeta(4, 8.0))


@contextmanager
def away(store: Store) -> Iterator[None]:
    """The database's connections fail, as they do when its server is gone."""
    with store.database.read() as connection:
        engine = connection.engine
    url = engine.url.set(database="/nonexistent/folder/db")
    engine.dispose()
    original = engine.pool._creator  # type: ignore[attr-defined]
    engine.pool._creator = lambda *_: engine.dialect.connect(url.database)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        engine.pool._creator = original  # type: ignore[attr-defined]


def names(resolver: StackResolver, *asked: str) -> list[str]:
    stack = asyncio.run(resolver.resolve([StackItem(name) for name in asked], "t"))
    return [entry.adapter.ref for entry in stack.entries]


async def test_the_loop_goes_on_while_files_are_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(Store.open(tmp_path / "state", blobs_url=f"memory://{tmp_path.name}")) as store:
        publish(store, "acme", tmp_path)
        resolver, fetched, go = StackResolver(store), store.blobs.local_path, threading.Event()
        stack = await resolver.resolve([StackItem("acme")], "t")

        def fetch(digest: str) -> Path:
            assert go.wait(20), "the event loop waits for the download"
            return fetched(digest)

        monkeypatch.setattr(store.blobs, "local_path", fetch)
        asyncio.get_running_loop().call_soon(go.set)
        async with resolver.held(stack):
            assert store.blobs.in_use(stack.entries[0].adapter.digest)
        assert not store.blobs.in_use(stack.entries[0].adapter.digest)


def test_field_c_adapters_in_use_go_on_while_the_database_is_away(store: Store, tmp_path: Path) -> None:
    for name in ("warm", "cold"):
        publish(store, name, tmp_path)
    resolver = StackResolver(store)
    assert names(resolver, "warm") == ["warm@1"]
    with away(store), structlog.testing.capture_logs() as logs:
        for _ in range(20):
            assert names(resolver, "warm") == ["warm@1"]
        for asked in (("cold",), ("warm", "cold")):
            with pytest.raises(Error) as caught:
                names(resolver, *asked)
            assert caught.value.code is Code.UNAVAILABLE
        # Another tenant never asked for it.
        with pytest.raises(Error):
            asyncio.run(resolver.resolve([StackItem("warm")], "other"))
        narrow = Principal("t", frozenset(), adapters=frozenset({"cold"}))
        with pytest.raises(Error):
            asyncio.run(resolver.resolve([StackItem("warm")], narrow))
    assert len(logs) == 1
    assert names(resolver, "cold", "warm") == ["cold@1", "warm@1"]
    store.adapters.delete("warm", "t")
    with pytest.raises(Error) as caught:
        names(resolver, "warm")
    assert caught.value.code is Code.NOT_FOUND
    with away(store), pytest.raises(Error) as caught:
        names(resolver, "warm")
    assert caught.value.code is Code.UNAVAILABLE


def test_field_c_a_use_that_cannot_be_noted_now_is_noted_later(store: Store, tmp_path: Path) -> None:
    publish(store, "warm", tmp_path)
    resolver = StackResolver(store)
    assert names(resolver, "warm") == ["warm@1"]
    usage = store.adapters._usage
    with away(store):
        usage._flushed -= FLUSH_SECONDS  # the next use is to be written
        assert names(resolver, "warm") == ["warm@1"]
        with pytest.raises(Error):
            usage.flush()
    usage.flush()
    with store.database.read() as connection:
        assert connection.scalar(sa.select(adapter_versions.c.last_used)) is not None


class Counted(Outage):
    """Says when there were many failures."""

    def __init__(self) -> None:
        super().__init__()
        self.many = asyncio.Event()

    def failed(self) -> bool:
        told = super().failed()
        if self.failures >= 20:
            self.many.set()
        return told


def test_field_c_one_request_at_a_time_tries_a_database_that_is_away(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A database behind a network that swallows packets takes seconds to fail: adapters in use do not wait for it."""
    publish(store, "warm", tmp_path)
    resolver = StackResolver(store)
    assert names(resolver, "warm") == ["warm@1"]
    asked = 0
    look_up = store.adapters.resolve_all

    def counted(*args: Any) -> Any:
        nonlocal asked
        asked += 1
        return look_up(*args)

    monkeypatch.setattr(store.adapters, "resolve_all", counted)
    with away(store):
        for _ in range(20):
            assert names(resolver, "warm") == ["warm@1"]
        assert asked == 1
        resolver._ask_again = 0.0  # a while later
        for _ in range(20):
            assert names(resolver, "warm") == ["warm@1"]
        assert asked == 2
    resolver._ask_again = 0.0
    store.adapters.delete("warm", "t")
    with pytest.raises(Error):
        names(resolver, "warm")
    assert resolver._outage.failures == 0


async def test_field_c_a_runner_bears_a_database_that_is_away(
    store: Store, text: TextTokenizer, info: EngineInfo
) -> None:
    """Whatever fails meanwhile is one line, not one for each try; a stop is not held up, and the job goes on later."""
    server = Server.over(store, text, info, lease_seconds=0.3)
    collector = Collector(store, asyncio.Event(), retry_seconds=0.001)
    outages = server.runner._outage, collector._outage = Counted(), Counted()
    job = await server.job()
    server.training.at, server.training.hang = 2, True
    async with asyncio.timeout(60):
        async with server.working():
            assert server.task is not None
            await server.training.waiting.wait()
            record = await asyncio.to_thread(store.jobs.get, job.id)
            with away(store), structlog.testing.capture_logs() as logs:
                failing = [
                    asyncio.create_task(server.runner._insist(record, JobState.FAILED)),
                    asyncio.create_task(server.runner._keep(record, failed := asyncio.create_task(asyncio.sleep(60)))),
                    asyncio.create_task(collector.run()),
                ]
                for outage in outages:
                    await outage.many.wait()
                for task in (*failing, failed, server.task):
                    task.cancel()
                await asyncio.gather(*failing, failed, server.task, return_exceptions=True)
                assert len(logs) == 2, logs
        server.training.hang = False
        async with server.working():
            assert states(await server.finished(job))[-1] is JobState.SUCCEEDED


async def test_field_c_a_job_under_way_goes_on_when_the_database_is_back(
    store: Store, text: TextTokenizer, info: EngineInfo
) -> None:
    server = Server.over(store, text, info, lease_seconds=0.3)
    server.runner._outage = outage = Counted()
    release = asyncio.Event()

    async def until_released() -> None:
        server.training.waiting.set()
        await release.wait()

    server.training.at, server.training._trouble = 2, until_released  # type: ignore[method-assign]
    job = await server.job()
    async with asyncio.timeout(60), server.working():
        await server.training.waiting.wait()
        with away(store), structlog.testing.capture_logs() as logs:
            release.set()
            await outage.many.wait()
        assert len(logs) == 1, logs
        assert states(await server.finished(job))[-1] is JobState.SUCCEEDED
    assert server.published() == ["acme@1"]


def test_field_c_an_outage_is_told_at_growing_intervals() -> None:
    now = [0.0]
    outage = Outage(lambda: now[0])
    assert outage.over() is None
    told = []
    for tenth in range(36_000):  # an hour, ten failures a second
        now[0] = tenth / 10
        if outage.failed():
            told.append(now[0])
    assert told[:3] == [0.0, FIRST, 3 * FIRST]
    assert len(told) < 15
    assert outage.over() == pytest.approx(now[0])
    assert outage.over() is None
