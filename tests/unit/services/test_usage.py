"""What requests are charged with, and that all of it reaches the database once, however long that is away."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
import structlog

from loramux_server.core.call import Call
from loramux_server.core.callers.principal import LOCAL, Principal, Scope
from loramux_server.core.callers.usage import AMOUNTS, Amounts, Dimension, UsageMethod, UsageQuery
from loramux_server.core.errors import Code, Error
from loramux_server.core.observing.observer import RequestFinished
from loramux_server.core.types import BASE, AdapterVersion, Stack, StackEntry
from loramux_server.host.failpoints import VARIABLE
from loramux_server.services.common.context import Context
from loramux_server.services.usage import recorder as recorder_module
from loramux_server.services.usage.recorder import UsageRecorder
from loramux_server.services.usage.service import LONGEST_DAYS, UsageRequest, UsageService
from loramux_server.store.paging import make_token
from loramux_server.store.store import Store
from loramux_server.store.usage import UsageTable

MIDNIGHT = datetime(2026, 11, 2, tzinfo=UTC).timestamp()
QUERY = UsageQuery(since=date(2026, 11, 1), until=date(2026, 12, 1), group_by=tuple(Dimension))
CALL = Call("Generate", "r-1", LOCAL)
FINISHED = RequestFinished("r-1", "generate", "ann", BASE, 10, 3, 4, 0.5, (), "OK", call=CALL)


def stack(*names: str) -> Stack:
    return Stack(tuple(StackEntry(AdapterVersion(name, 1, name, 4)) for name in names))


@pytest.fixture
def recorder(store: Store) -> UsageRecorder:
    return UsageRecorder(store.usage, lambda: MIDNIGHT)


def recorded(store: Store, query: UsageQuery = QUERY) -> dict[tuple[str, str, str, str], Amounts]:
    found, token = store.usage.read(query, 1000)
    assert not token
    return {
        (row.day, row.tenant, row.adapter, row.method): Amounts(*(getattr(row, name) for name in AMOUNTS))
        for row in found
    }


def total(store: Store) -> Amounts:
    return sum(recorded(store).values(), Amounts())


@pytest.mark.parametrize(
    ("changes", "charged"),
    [
        ({}, Amounts(1, 10, 4, 3)),
        ({"completion_tokens": 0}, Amounts(1, 10, 4, 0)),
        ({"code": "CANCELLED"}, Amounts(1, 10, 4, 3)),
        ({"code": "DEADLINE_EXCEEDED"}, Amounts(1, 10, 4, 3)),
        ({"code": "CANCELLED", "completion_tokens": 0}, Amounts()),
        ({"code": "FAILED_PRECONDITION"}, Amounts(1, 10, 4, 3)),
        ({"code": "RESOURCE_EXHAUSTED", "reason": "GRAMMAR_RESOURCE_EXHAUSTED"}, Amounts(1, 10, 4, 3)),
        ({"code": "RESOURCE_EXHAUSTED", "reason": "OUT_OF_MEMORY"}, Amounts()),
        ({"code": "UNAVAILABLE"}, Amounts()),
        ({"code": "INTERNAL"}, Amounts()),
        ({"method": "score", "cached_tokens": 0}, Amounts(1, 13)),
        ({"method": "embed", "cached_tokens": 0, "completion_tokens": 0}, Amounts(1, 10)),
        ({"call": None}, Amounts()),
    ],
    ids=str,
)
async def test_what_a_request_is_charged_with(
    store: Store, recorder: UsageRecorder, changes: dict[str, Any], charged: Amounts
) -> None:
    event = replace(FINISHED, **changes)
    recorder.request_finished(event)
    await recorder.flush()
    key = ("2026-11-02", "ann", "base", event.method)
    assert recorded(store) == ({key: charged} if charged.requests else {})


async def test_a_stack_has_one_row_in_whatever_order(store: Store, recorder: UsageRecorder) -> None:
    for names in (("b", "a"), ("a", "b"), ("a",), ()):
        recorder.request_finished(replace(FINISHED, stack=stack(*names)))
    await recorder.flush()
    assert {key[2]: amounts.requests for key, amounts in recorded(store).items()} == {"a+b": 2, "a": 1, "base": 1}


async def test_a_request_counts_on_the_day_that_it_ends_on(store: Store) -> None:
    now = MIDNIGHT - 0.001
    recorder = UsageRecorder(store.usage, lambda: now)
    recorder.request_finished(FINISHED)
    now = MIDNIGHT
    recorder.request_finished(FINISHED)
    now += 86_400 * 3  # when it is written does not matter
    await recorder.flush()
    assert {key[0] for key in recorded(store)} == {"2026-11-01", "2026-11-02"}


@pytest.mark.parametrize("seed", range(4))
async def test_random_traffic_over_a_database_that_fails_at_every_step(
    store: Store, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Two servers, whose flushes fail before and after the commit, or are cancelled: a recount gives the same."""
    draw, expected = random.Random(seed), Amounts()
    recorders = [UsageRecorder(store.usage, lambda: MIDNIGHT) for _ in range(2)]
    for _ in range(60):
        for _ in range(draw.randrange(6)):
            event = replace(FINISHED, prompt_tokens=draw.randrange(1000), stack=stack(*draw.sample("abc", 2)))
            draw.choice(recorders).request_finished(event)
            expected += Amounts(1, event.prompt_tokens, 4, 3)
        failure = draw.choice(["", "", "usage.before_commit:raise", "usage.committed:raise"])
        monkeypatch.setenv(VARIABLE, failure)
        flush = asyncio.create_task(draw.choice(recorders).flush())
        if draw.random() < 0.3:
            await asyncio.sleep(draw.choice([0, 0.001]))
            flush.cancel()
        await asyncio.gather(flush, return_exceptions=True)
    monkeypatch.delenv(VARIABLE)
    for recorder in recorders:
        await recorder.close()
    assert total(store) == expected


class Away:
    """A table whose database is away until it is back."""

    def __init__(self, table: UsageTable) -> None:
        self.table, self.away, self.tried = table, True, asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def add(self, *given: Any) -> None:
        self._loop.call_soon_threadsafe(self.tried.set)
        if self.away:
            raise Error(Code.UNAVAILABLE, "the database is away", reason="DATABASE_UNAVAILABLE")
        self.table.add(*given)


async def test_a_long_outage_loses_nothing_and_bounds_what_waits(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder_module, "MOST_WAITING", 10)
    away = Away(store.usage)
    recorder = UsageRecorder(away, lambda: MIDNIGHT)  # type: ignore[arg-type]
    with structlog.testing.capture_logs() as logs:
        following = asyncio.create_task(recorder.follow(0.001))
        try:
            for number in range(50):
                away.tried.clear()
                recorder.request_finished(replace(FINISHED, stack=stack(f"a{number}")))
                await away.tried.wait()
        finally:
            following.cancel()
        away.away = False
        await recorder.close()
    # All at once now: as many rows as there were waiting.
    assert len(recorded(store)) <= 1 + 10 + 1
    assert total(store) == Amounts(50, 500, 200, 150)
    assert recorded(store)[("2026-11-02", "ann", "_other", "generate")].requests > 0
    told = [entry["event"] for entry in logs]
    assert told == ["usage not written yet, it waits in memory", "usage written again"]


async def test_a_server_that_stops_writes_what_waits(store: Store, recorder: UsageRecorder) -> None:
    recorder.request_finished(FINISHED)
    await recorder.close()
    assert total(store) == Amounts(1, 10, 4, 3)


async def test_a_server_that_cannot_write_before_it_stops_says_what_is_lost(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder_module, "LAST_SECONDS", 0.01)
    recorder = UsageRecorder(Away(store.usage), lambda: MIDNIGHT)  # type: ignore[arg-type]
    for _ in range(3):
        recorder.request_finished(FINISHED)
    with structlog.testing.capture_logs() as logs:
        await recorder.close()
    (lost,) = [entry for entry in logs if entry["log_level"] == "error"]
    assert (lost["requests"], lost["input_tokens"], lost["output_tokens"]) == (3, 30, 9)


async def test_a_defect_does_not_end_the_task_that_writes(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    away = Away(store.usage)
    recorder = UsageRecorder(away, lambda: MIDNIGHT)  # type: ignore[arg-type]
    away.away = False
    monkeypatch.setattr(store.usage, "add", lambda *_: 1 / 0)
    recorder.request_finished(FINISHED)
    with structlog.testing.capture_logs() as logs:
        following = asyncio.create_task(recorder.follow(0.001))
        for _ in range(2):
            away.tried.clear()
            await asyncio.wait_for(away.tried.wait(), 10)
        following.cancel()
    assert isinstance(logs[0]["exc_info"], ZeroDivisionError)
    monkeypatch.undo()
    await recorder.close()
    assert total(store).requests == 1


ADMIN, TENANT = Principal("operations", frozenset(Scope)), Principal("ann", frozenset({Scope.INFER}))


@pytest.fixture
def ask(context: Context, recorder: UsageRecorder) -> Callable[..., Any]:
    service = UsageService(context, recorder)
    return lambda principal=TENANT, **asked: service.usage(UsageRequest(principal=principal, **asked))


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"since": "2026-11-1"}, "since"),
        ({"since": "20261101"}, "since"),
        ({"since": "2026-11-31"}, "since"),
        ({"since": "2026-11-01T00:00:00Z"}, "since"),
        ({"since": "-1"}, "since"),
        ({"until": "\u0662026-11-01"}, "until"),
        ({"since": "2026-11-01", "until": "2026-11-01"}, "until"),
        ({"since": "2026-11-02", "until": "2026-11-01"}, "until"),
        ({"since": "0001-01-01", "until": "9999-12-31"}, "since"),
        ({"since": "2025-01-01", "until": "2026-01-03"}, "since"),
        ({"page_size": 1001}, "page_size"),
        ({"page_size": -1}, "page_size"),
        ({"page_token": "x"}, "page_token"),
        ({"page_token": make_token('["2026-11-01", "\\u0000", "a"]')}, "page_token"),
        ({"adapter": "a\0b"}, "adapter"),
        ({"adapter": "a" * 100_000}, "adapter"),
        ({"tenant": "\ud800"}, "tenant"),
    ],
)
async def test_what_cannot_be_asked_is_refused_by_field(
    ask: Callable[..., Any], asked: dict[str, Any], field: str
) -> None:
    with pytest.raises(Error) as caught:
        await ask(**asked)
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert [violation.field for violation in caught.value.violations] == [field]


async def test_the_longest_time_and_the_last_days_of_the_calendar_are_answered(ask: Callable[..., Any]) -> None:
    assert LONGEST_DAYS == 366
    for asked in ({"since": "2024-01-01", "until": "2025-01-01"}, {"since": "9999-01-01", "until": "9999-12-31"}):
        assert (await ask(ADMIN, **asked)).items == ()
    assert (await ask(since="0001-01-01", until="0001-01-02")).items == ()


async def test_what_was_used_a_moment_ago_is_told(context: Context) -> None:
    """By default that of this month up to today."""
    recorder = UsageRecorder(context.store.usage)
    recorder.request_finished(FINISHED)
    service = UsageService(context, recorder)
    before = datetime.now(UTC).date()
    page = await service.usage(UsageRequest(principal=TENANT))
    (row,) = page.items
    assert row.day in {before.isoformat(), (before + timedelta(days=1)).isoformat()}
    assert (row.tenant, row.adapter, row.method, row.requests) == ("ann", "base", "", 1)
    (row,) = (await service.usage(UsageRequest(principal=TENANT, group_by=(Dimension.METHOD,)))).items
    assert (row.day, row.tenant, row.adapter, row.method) == ("", "", "", UsageMethod.GENERATE)


@pytest.mark.parametrize("tenant", ["ann", "bob", "nobody"])
async def test_other_tenants_need_the_scope_admin(ask: Callable[..., Any], tenant: str) -> None:
    assert (await ask(ADMIN, tenant=tenant)).items == ()
    if tenant == "ann":
        await ask(tenant=tenant)
        return
    with pytest.raises(Error, match="needs the scope 'admin'") as caught:
        await ask(tenant=tenant)
    assert caught.value.code is Code.PERMISSION_DENIED


async def test_a_key_that_is_limited_to_adapters_is_told_nothing(ask: Callable[..., Any]) -> None:
    for principal in (replace(TENANT, adapters=frozenset({"mine"})), replace(ADMIN, adapters=frozenset())):
        with pytest.raises(Error, match="limited to some adapters") as caught:
            await ask(principal)
        assert caught.value.code is Code.PERMISSION_DENIED
