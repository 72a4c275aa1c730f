"""When a front gives its cluster up, and what it does before."""

from __future__ import annotations

import asyncio
from threading import Event

import pytest

from loramux_server.replicas import head, watch
from loramux_server.replicas.head import SILENT_SECONDS, bearable_seconds
from loramux_server.replicas.watch import ClusterWatch


class Cluster:
    """Answers as it is told. A second passes with each question to Ray Serve, and whenever replicas are dropped."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(head, "ASK_SECONDS", 0.001)
        monkeypatch.setattr(watch, "ASK_SECONDS", 0.001)
        self.now = 0.0
        self.head_hangs, self.ended = Event(), Event()
        self.application: list[bool | Exception] = [False]
        self.serves = self.headless = False
        self.dropped: list[float] = []
        self.looked = asyncio.Event()
        self.watch = ClusterWatch(self, self.look, lambda: self.now)

    def look(self) -> bool:
        self.looked.set()
        return self.serves

    async def goes_on(self) -> None:
        """Return when the watch has looked around a few times more."""
        for _ in range(5):
            self.looked.clear()
            await asyncio.wait_for(self.looked.wait(), 60)

    def ask_head(self) -> None:
        if self.head_hangs.is_set():
            self.ended.wait(60)

    def application_is_gone(self) -> bool:
        self.now += 1
        said = self.application.pop(0) if len(self.application) > 1 else self.application[0]
        if isinstance(said, Exception):
            raise said
        return said

    async def drop_silent(self) -> None:
        self.dropped.append(self.now)
        self.now += 1

    async def lost(self) -> str:
        try:
            async with asyncio.timeout(60):
                return await self.watch.lost(self.drop_silent)
        finally:
            self.watch.stop()
            self.headless = self.watch.headless
            self.ended.set()


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    return Cluster(monkeypatch)


async def test_replicas_are_asked_before_a_cluster_without_a_head_is_given_up(cluster: Cluster) -> None:
    cluster.serves = True
    cluster.head_hangs.set()
    lost = asyncio.create_task(cluster.lost())
    await cluster.goes_on()
    assert not cluster.dropped, "it may answer yet"
    cluster.now = SILENT_SECONDS + 1
    assert "its head does not answer" in await lost
    assert cluster.headless
    assert cluster.dropped[0] == SILENT_SECONDS + 1
    assert cluster.dropped[-1] <= bearable_seconds()


async def test_an_application_that_was_removed_is_given_up(cluster: Cluster) -> None:
    # What is not known counts for nothing, and a moment without an application neither.
    cluster.application = [True, RuntimeError("the controller starts again"), *[True] * 30, False, True]
    assert await cluster.lost() == "the application was removed from Ray Serve"
    assert cluster.now > 33 + bearable_seconds()
    assert not cluster.dropped


async def test_nobody_asks_for_the_application_while_a_replica_serves(cluster: Cluster) -> None:
    cluster.serves, cluster.application = True, [True]
    lost = asyncio.create_task(cluster.lost())
    await cluster.goes_on()
    assert cluster.now == 0
    cluster.serves = False
    assert "removed" in await lost
