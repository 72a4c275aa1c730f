"""Adapters that waiting requests need: read about once each, held for their turn, however little room there is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from random import Random

import pytest

from loramux_server.core.types import AdapterVersion
from loramux_server.engine.residency.load_quota import LoadQuota
from loramux_server.engine.residency.loading import READ_AHEAD, ReadQueue

SIZE = 10


class Cache:
    """Host memory in which each adapter takes SIZE bytes; reads end when told to."""

    def __init__(self, adapters: int) -> None:
        self.budget = adapters * SIZE
        self.here: list[str] = []  # least recently used first
        self.asked: list[str] = []

    def request(self, version: AdapterVersion) -> None:
        self.asked.append(version.digest)

    def size_of(self, digests: Iterable[str]) -> int:
        return SIZE * len({*digests} & {*self.here})


def adapter(digest: str) -> AdapterVersion:
    return AdapterVersion(digest, 1, digest, 1)


def queue_of(cache: Cache, quota: LoadQuota | None = None, stuck: Callable[[], bool] = lambda: False) -> ReadQueue:
    return ReadQueue(cache, quota or LoadQuota(0), lambda a: SIZE, stuck)  # type: ignore[arg-type]


def land(cache: Cache, reads: ReadQueue, *digests: str) -> None:
    for digest in digests:
        reads.ended(digest)
        cache.here.append(digest)


def test_reads_begin_in_order_a_few_at_a_time_and_never_twice() -> None:
    cache = Cache(100)
    reads = queue_of(cache)
    for i in range(10):
        reads.want(adapter(f"d{i}"), f"r{i}", "t")
        reads.want(adapter(f"d{i}"), f"again{i}", "t")
    for _ in range(3):
        assert reads.begin() is None
    assert cache.asked == [f"d{i}" for i in range(READ_AHEAD)]
    land(cache, reads, "d0")
    reads.begin()
    assert cache.asked[READ_AHEAD:] == [f"d{READ_AHEAD}"]


def test_what_is_waited_for_leaves_room_for_no_more_until_its_turn() -> None:
    cache = Cache(2)
    reads = queue_of(cache)
    for i in range(4):
        reads.want(adapter(f"d{i}"), f"r{i}", "t")
    reads.begin()
    assert cache.asked == ["d0", "d1"]
    land(cache, reads, "d0", "d1")
    reads.begin()
    assert {*reads.claims} == {"d0", "d1"}
    assert len(cache.asked) == 2
    reads.release("r0", ["d0"])
    reads.begin()
    assert (cache.asked[2:], {*reads.claims}) == (["d2"], {"d1"})


def test_who_comes_after_a_read_has_no_part_in_what_it_holds() -> None:
    """Else requests for one adapter that never stop would keep the others out."""
    cache = Cache(1)
    reads = queue_of(cache)
    reads.want(adapter("popular"), "first", "t")
    reads.begin()
    reads.want(adapter("popular"), "while it is read", "t")
    reads.want(adapter("other"), "r", "t")
    land(cache, reads, "popular")
    reads.release("first", ["popular"])
    reads.begin()
    assert cache.asked == ["popular"]
    reads.release("while it is read", ["popular"])
    reads.begin()
    assert cache.asked == ["popular", "other"]


def test_a_stack_that_takes_more_than_there_is_room_for_is_read_all_the_same() -> None:
    cache = Cache(1)
    reads = queue_of(cache, stuck=lambda: True)
    for digest in "ab":
        reads.want(adapter(digest), "r", "t")
    reads.begin()
    assert cache.asked == ["a"]
    land(cache, reads, "a")
    reads.begin()
    assert cache.asked == ["a", "b"]


def test_what_nobody_waits_for_any_more_is_not_read() -> None:
    cache = Cache(0)
    reads = queue_of(cache)
    reads.want(adapter("a"), "r", "t")
    reads.begin()
    reads.release("r", ["a"])
    cache.budget = 10 * SIZE
    reads.begin()
    assert cache.asked == []


def test_an_operator_waits_for_nobody() -> None:
    cache = Cache(0)
    reads = queue_of(cache, LoadQuota(0.001))
    for i in range(5):
        reads.want(adapter(f"d{i}"), "r", "t")
    reads.hurry(adapter("d4"))
    reads.begin()
    assert cache.asked == ["d4"]


def test_a_quota_holds_back_its_own_tenant_until_somebody_can_pay() -> None:
    now = 0.0
    quota = LoadQuota(0.5, lambda: now)
    cache = Cache(100)
    reads = queue_of(cache, quota)
    assert quota.take("poor")
    reads.want(adapter("a"), "r1", "poor")
    reads.want(adapter("b"), "r2", "rich")
    assert reads.begin() == pytest.approx(2.0)
    assert cache.asked == ["b"]
    now = 1.0
    assert reads.begin() == pytest.approx(1.0)
    reads.want(adapter("a"), "r3", None)  # was read before for this one, and has left memory since
    assert reads.begin() is None
    assert cache.asked == ["b", "a"]


def test_nothing_is_left_behind() -> None:
    for seed in range(30):
        draw, cache = Random(seed), Cache(3)
        reads = queue_of(cache, stuck=lambda: True)
        live: dict[str, list[str]] = {}
        for step in range(200):
            if draw.random() < 0.6:
                live[f"r{step}"] = [f"d{draw.randrange(8)}"]
                reads.want(adapter(live[f"r{step}"][0]), f"r{step}", "t")
            reads.begin()
            coming = Counter(cache.asked) - Counter(cache.here)
            if coming and draw.random() < 0.5:
                land(cache, reads, draw.choice(sorted(coming)))
            if live and draw.random() < 0.5:
                id = draw.choice(sorted(live))
                reads.release(id, live.pop(id))
        for id, digests in live.items():
            reads.release(id, digests)
        assert not reads.claims
        assert len(reads) == 0


def test_what_comes_to_the_host_by_itself_is_delivered_though_claims_fill_it() -> None:
    """An adapter that left the device after somebody asked for it: its claim must not keep it from being delivered."""
    cache = Cache(1)
    reads = queue_of(cache)
    reads.want(adapter("x"), "first", None)
    reads.begin()
    land(cache, reads, "x")
    cache.here.clear()  # it went to the device for another, while ``first`` has yet to start
    reads.want(adapter("x"), "second", None)
    cache.here.append("x")  # and is back
    reads.came("x")
    reads.want(adapter("y"), "third", None)
    reads.begin()
    assert cache.asked == ["x", "x"]
