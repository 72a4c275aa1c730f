"""Usage in the database: each flush once whatever fails, and sums over any grouping that are the totals."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from itertools import combinations
from pathlib import Path

import pytest
import sqlalchemy as sa

from loramux_server.core.callers.usage import (
    AMOUNTS,
    Amounts,
    Dimension,
    UsageKey,
    UsageMethod,
    UsageQuery,
    UsageRow,
    day_of,
)
from loramux_server.core.errors import Code, Error
from loramux_server.core.jobs import JobRequest, TrainEvent, TrainEventType
from loramux_server.host.failpoints import VARIABLE
from loramux_server.store import usage as usage_module
from loramux_server.store.adapters.registry import AdapterRegistry
from loramux_server.store.jobs.table import JobTable
from loramux_server.store.paging import make_token
from loramux_server.store.records import SHARED, AdapterMeta
from loramux_server.store.schema import usage_flushes
from loramux_server.store.store import Store
from loramux_server.store.usage import KEEP_FLUSHES, UsageTable

Make = Callable[[str], Path]
FIRST = date(2026, 11, 1)
NOON = datetime(2026, 11, 1, 12, tzinfo=UTC).timestamp()
HOUR, DAY = 3600.0, 86_400.0
ALL = UsageQuery(since=FIRST, until=FIRST + timedelta(days=30), group_by=tuple(Dimension))
KEY = UsageKey("2026-11-01", "ann", "acme", UsageMethod.GENERATE)
META = AdapterMeta(rank=4, alpha=8.0)


@pytest.fixture
def usage(store: Store) -> UsageTable:
    return UsageTable(store.database, lambda: NOON + 40 * DAY)


def rows(table: UsageTable, query: UsageQuery = ALL, page_size: int = 1000) -> list[UsageRow]:
    """All pages of it."""
    found: list[UsageRow] = []
    token = ""
    while True:
        page, token = table.read(query, page_size, token)
        assert len(page) == page_size or not token
        found += page
        if not token:
            return found


def totals(found: list[UsageRow]) -> Amounts:
    return sum((Amounts(*(getattr(row, name) for name in AMOUNTS)) for row in found), Amounts())


def random_key(draw: random.Random) -> UsageKey:
    day = (FIRST + timedelta(days=draw.randrange(4))).isoformat()
    adapter = draw.choice(["base", "acme", "json", "acme+json", "_other"])
    return UsageKey(day, draw.choice(["ann", "bob", "carl"]), adapter, draw.choice(list(UsageMethod)[:4]))


def random_amounts(draw: random.Random) -> Amounts:
    return Amounts(*(draw.choice([0, 1, draw.randrange(10**12)]) for _ in AMOUNTS))


@pytest.mark.parametrize("seed", range(3))
def test_every_flush_is_there_once_whatever_fails(
    store: Store, usage: UsageTable, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Before the commit nothing is there, and after it all is: the caller, who cannot tell, tries again either way."""
    draw, expected = random.Random(seed), dict[UsageKey, Amounts]()
    sequences = dict.fromkeys(("run-1", "run-2"), 0)
    for _ in range(40):
        run = draw.choice(sorted(sequences))
        sequences[run] += 1
        batch = {random_key(draw): random_amounts(draw) for _ in range(draw.randrange(1, 5))}
        for key, amounts in batch.items():
            expected[key] = expected.get(key, Amounts()) + amounts
        while True:
            failure = draw.choice(["", "", "usage.before_commit:raise", "usage.committed:raise"])
            monkeypatch.setenv(VARIABLE, failure)
            try:
                usage.add(run, sequences[run], batch)
            except OSError:
                continue
            break
    monkeypatch.delenv(VARIABLE)
    assert {
        UsageKey(row.day, row.tenant, row.adapter, UsageMethod(row.method)): Amounts(
            *(getattr(row, name) for name in AMOUNTS)
        )
        for row in rows(usage)
    } == expected


@pytest.mark.parametrize("count", range(len(Dimension) + 1))
def test_sums_over_any_grouping_are_the_totals(usage: UsageTable, count: int) -> None:
    draw = random.Random(count)
    batch = {random_key(draw): random_amounts(draw) for _ in range(60)}
    usage.add("run", 1, batch)
    for dimensions in combinations(Dimension, count):
        found = rows(usage, replace(ALL, group_by=dimensions))
        assert totals(found) == sum(batch.values(), Amounts())
        keys = [tuple(getattr(row, dimension) for dimension in dimensions) for row in found]
        assert keys == sorted(set(keys))
        for size in (7,) if count < len(Dimension) else (1, 7):
            if dimensions:
                assert rows(usage, replace(ALL, group_by=dimensions), size) == found


def test_a_query_finds_what_it_names(usage: UsageTable) -> None:
    used = {
        ("2026-11-01", "ann", "acme"): 1,
        ("2026-11-02", "ann", "acme+json"): 2,
        ("2026-11-02", "bob", "acme2"): 4,
        ("2026-11-03", "bob", "ac_e"): 8,
        ("2026-11-04", "bob", "base"): 16,
    }
    usage.add("run", 1, {UsageKey(*key, UsageMethod.SCORE): Amounts(n) for key, n in used.items()})

    def requests(**changes: object) -> int:
        return totals(rows(usage, replace(ALL, **changes))).requests  # type: ignore[arg-type]

    assert requests() == 31
    assert requests(since=date(2026, 11, 2), until=date(2026, 11, 4)) == 14
    assert requests(tenants=("ann",)) == 3
    assert requests(tenants=()) == 0
    assert requests(adapter="acme") == 3  # and no name that it is a part of
    assert requests(adapter="ac_e") == 8  # whose underscore is no pattern
    assert requests(adapter="%") == 0
    assert requests(labels=("acme+json", "base")) == 18
    assert requests(methods=(UsageMethod.GENERATE,)) == 0


@pytest.mark.parametrize("token", ["x", make_token("x"), make_token("[]"), make_token('["2026-11-01"]'), "[" * 99])
def test_page_tokens_that_were_never_given_are_refused(usage: UsageTable, token: str) -> None:
    with pytest.raises(Error) as caught:
        usage.read(ALL, 10, token)
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert caught.value.violations[0].field == "page_token"


def test_a_page_token_that_names_no_day_is_refused(usage: UsageTable) -> None:
    with pytest.raises(Error, match="page_token"):
        usage.read(ALL, 10, make_token('["yesterday", "a", "b", "c"]'))


def test_stacks_are_bounded_and_adapters_are_not(usage: UsageTable, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a tenant invents costs no other tenant, and no other day, a row."""
    monkeypatch.setattr(usage_module, "MOST_STACKS", 3)
    for number in range(8):
        stacks = {replace(KEY, adapter=f"a+b{number}"): Amounts(1), replace(KEY, adapter=f"a{number}"): Amounts(10)}
        usage.add("run", number + 1, stacks)
    usage.add("run", 9, {replace(KEY, adapter=f"a+c{number}"): Amounts(1) for number in range(5)})
    usage.add("run", 10, {replace(KEY, adapter="a+b1"): Amounts(5)})  # has its row
    usage.add("run", 11, {replace(KEY, tenant="bob", adapter="a+c"): Amounts(1)})
    found = {(row.tenant, row.adapter): row.requests for row in rows(usage)}
    assert found == {
        **{("ann", f"a{number}"): 10 for number in range(8)},
        ("ann", "a+b0"): 1,
        ("ann", "a+b1"): 6,
        ("ann", "a+b2"): 1,
        ("ann", "_other"): 10,
        ("bob", "a+c"): 1,
    }


def test_flushes_of_processes_that_ended_long_ago_are_forgotten(store: Store) -> None:
    now = [NOON]
    table = UsageTable(store.database, lambda: now[0])
    for run, later in (("old", 0.0), ("young", KEEP_FLUSHES / 2), ("new", KEEP_FLUSHES / 2 + 1)):
        now[0] += later
        table.add(run, 1, {KEY: Amounts(1)})
    with store.database.read() as connection:
        assert set(connection.scalars(sa.select(usage_flushes.c.run))) == {"young", "new"}


def hours(table: UsageTable, query: UsageQuery = ALL) -> dict[tuple[str, str, str], float]:
    return {(row.day, row.tenant, row.adapter): round(row.adapter_hours, 6) for row in rows(table, query)}


def test_hours_are_those_of_every_version_while_it_was_stored(store: Store, folder: Make) -> None:
    """Over midnight, over a deletion, over new versions of the name, and no further than now."""
    now = [NOON]
    registry = AdapterRegistry(store.database, store.blobs, lambda: now[0], store.damage)
    table = UsageTable(store.database, lambda: now[0])
    registry.publish("acme", "ann", folder("one"), META)
    registry.publish("ours", SHARED, folder("one"), META)  # the operator's
    now[0] += 6 * HOUR
    registry.publish("acme", "ann", folder("two"), META)
    registry.publish("acme", "bob", folder("two"), META)
    now[0] = NOON + 36 * HOUR  # midnight after the second day
    registry.delete("acme", "ann")
    now[0] += 6 * HOUR
    registry.publish("acme", "ann", folder("one"), META)  # the same content again is stored from now on
    now[0] += 1.5 * HOUR
    first, second, third = ("2026-11-01", "2026-11-02", "2026-11-03")
    ann, bob = ("ann", "acme"), ("bob", "acme")
    assert hours(table) == {
        (first, *ann): 12 + 6,
        (first, *bob): 6,
        (second, *ann): 24 + 24,
        (second, *bob): 24,
        (third, *ann): 1.5,
        (third, *bob): 7.5,
    }
    assert hours(table, replace(ALL, group_by=(Dimension.TENANT,))) == {("", "ann", ""): 67.5, ("", "bob", ""): 37.5}
    assert hours(table, replace(ALL, since=date(2026, 11, 2), group_by=())) == {("", "", ""): 24 + 24 + 24 + 1.5 + 7.5}
    assert hours(table, replace(ALL, since=date(2026, 11, 4))) == {}  # nothing is stored in the future
    assert {row.method for row in rows(table)} == {"store"}
    assert rows(table, replace(ALL, methods=(UsageMethod.EMBED,))) == []
    assert rows(table, page_size=2) == rows(table)


def test_a_clock_that_went_back_takes_no_hours_away(store: Store, folder: Make) -> None:
    """A version that was deleted before it was published, as far as the clocks of two servers tell."""
    now = [NOON]
    registry = AdapterRegistry(store.database, store.blobs, lambda: now[0], store.damage)
    registry.publish("steady", "ann", folder("one"), META)
    registry.publish("acme", "ann", folder("two"), META)
    now[0] -= 2 * HOUR
    registry.delete("acme", "ann")
    table = UsageTable(store.database, lambda: NOON + HOUR)
    assert hours(table, replace(ALL, group_by=(Dimension.TENANT,))) == {("", "ann", ""): 1}


def test_versions_deleted_before_that_was_noted_have_no_hours(store: Store, folder: Make) -> None:
    table = UsageTable(store.database, lambda: NOON + DAY)
    registry = AdapterRegistry(store.database, store.blobs, lambda: NOON, store.damage)
    registry.publish("acme", "ann", folder("one"), META)
    registry.delete("acme", "ann")
    with store.database.write() as connection:
        connection.execute(sa.text("UPDATE adapter_versions SET deleted = NULL"))
    assert rows(table) == []


def test_a_deleted_adapter_keeps_its_usage(store: Store, folder: Make, usage: UsageTable) -> None:
    store.adapters.publish("acme", "ann", folder("one"), META)
    usage.add("run", 1, {KEY: Amounts(1, 2, 3, 4)})
    store.adapters.delete("acme", "ann")
    store.collect_orphans()
    assert totals(rows(usage, replace(ALL, adapter="acme"))) == Amounts(1, 2, 3, 4)


def test_tokens_of_steps_are_in_the_transaction_of_their_events(
    store: Store, usage: UsageTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the adapter that is trained and the day of the step; those of a runner that lost the job are dropped."""
    now = [NOON + 12 * HOUR - 1]
    jobs = JobTable(store.database, lambda: now[0])
    jobs.create(JobRequest("acme", "ds", "ann"))
    claimed = jobs.claim("r", 30.0)
    assert claimed is not None

    def step(number: int, tokens: float, fence: int) -> None:
        event = TrainEvent(TrainEventType.STEP, step=number, metrics={"tokens": tokens})
        jobs.append_event(claimed.id, event, fence)
        jobs.flush()

    step(1, 100.0, claimed.fence)
    step(1, 1000.0, claimed.fence - 1)
    monkeypatch.setenv(VARIABLE, "job.events.before_commit:raise")
    with pytest.raises(OSError, match="failpoint"):
        step(2, 20.0, claimed.fence)
    monkeypatch.delenv(VARIABLE)
    now[0] += 1  # midnight
    step(3, 3.0, claimed.fence)  # with the one that waits, which keeps its own day
    key = UsageKey("2026-11-01", "ann", "acme", UsageMethod.TRAIN)
    assert {(row.day, row.tenant, row.adapter, row.method): row.trained_tokens for row in rows(usage)} == {
        (key.day, "ann", "acme", "train"): 120,
        ("2026-11-02", "ann", "acme", "train"): 3,
    }
    assert totals(rows(usage)).requests == 0


def test_two_servers_add_to_the_same_rows(store: Store) -> None:
    """At the same time: each with its own run, none of whose flushes is lost or doubled."""
    table = UsageTable(store.database, lambda: NOON)
    start = threading.Barrier(4)

    def serve(run: str) -> None:
        start.wait()
        for sequence in range(1, 21):
            for _ in range(2):  # the second has nothing to do
                table.add(run, sequence, {KEY: Amounts(1, 10), replace(KEY, adapter=run): Amounts(1, 10)})

    threads = [threading.Thread(target=serve, args=(f"run{number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert totals(rows(table)) == Amounts(160, 1600)
    assert totals(rows(table, replace(ALL, adapter="acme"))) == Amounts(80, 800)


def test_days_are_those_of_utc(monkeypatch: pytest.MonkeyPatch) -> None:
    midnight = datetime(2026, 11, 1, tzinfo=UTC).timestamp()
    for zone in ("America/New_York", "Pacific/Kiritimati"):
        with monkeypatch.context() as changed:
            changed.setenv("TZ", zone)
            time.tzset()
            assert datetime.fromtimestamp(midnight).hour != 0  # noqa: DTZ006
            found = (day_of(midnight - 0.001), day_of(midnight))
        time.tzset()
        assert found == ("2026-10-31", "2026-11-01")
