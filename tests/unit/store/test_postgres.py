"""The same store over PostgreSQL, where a server can be started."""

from __future__ import annotations

import asyncio
import math
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import structlog
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from loramux_server.core.call import Call
from loramux_server.core.callers.keys import ApiKey
from loramux_server.core.callers.principal import Principal, Scope
from loramux_server.core.callers.usage import Amounts
from loramux_server.core.errors import Code, Error
from loramux_server.core.jobs import JobRequest, JobState, TrainEvent, TrainEventType, TrainSpec
from loramux_server.core.observing.observer import RequestFinished
from loramux_server.core.types import BASE, StackItem
from loramux_server.services.access.keys import KeyRing
from loramux_server.services.access.quota_follower import QuotaFollower
from loramux_server.services.access.quotas import QuotaMeter
from loramux_server.services.access.refusals import Refused
from loramux_server.services.common.stacks import StackResolver
from loramux_server.services.usage.recorder import UsageRecorder
from loramux_server.store import database
from loramux_server.store.keys import KeyTable
from loramux_server.store.maintenance.doctor import examine, repair
from loramux_server.store.records import AdapterMeta, Composition
from loramux_server.store.schema import metadata
from loramux_server.store.store import Store
from loramux_server.store.usage import UsageTable
from tests.adapter_files import folder_of
from tests.postgres import BIN, MISSING, Postgres, open_postgres
from tests.unit.services import test_shared_quotas
from tests.unit.services.test_shared_quotas import ACME, site  # noqa: F401 - a fixture
from tests.unit.store import test_keys, test_quota_use, test_quotas, test_sharing, test_usage
from tests.unit.store.test_quota_use import clock, use  # noqa: F401 - fixtures

Make = Callable[[str], Path]
META = AdapterMeta(4, 8.0, metrics={"loss": math.nan, "worst": -math.inf, "best": 0.5})


pytestmark = [
    pytest.mark.skipif(BIN is None, reason=MISSING),
    pytest.mark.slow,
]


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    pytest.importorskip("psycopg", reason="needs the package psycopg")
    with open_postgres(tmp_path_factory.mktemp("pg")) as server:
        yield server


@pytest.fixture
def url(postgres: Postgres, request: pytest.FixtureRequest) -> str:
    """A database of the test's own."""
    return postgres.make_database(f"t{abs(hash(request.node.nodeid))}")


@pytest.fixture
def store(url: str, tmp_path: Path) -> Iterator[Store]:
    opened = Store.open(tmp_path / "state", url)
    yield opened
    opened.close()


@pytest.fixture
def table(store: Store) -> KeyTable:
    return KeyTable(store.database, lambda: 100.0)


@pytest.fixture
def usage(store: Store) -> UsageTable:
    return UsageTable(store.database, lambda: test_usage.NOON + 40 * test_usage.DAY)


# What holds of keys, quotas, shared adapters and usage in SQLite holds here: the same tests, over this module's store.
for _module in (test_keys, test_quota_use, test_quotas, test_shared_quotas, test_sharing, test_usage):
    globals().update({name: test for name, test in vars(_module).items() if name.startswith("test_")})


def test_the_tables_are_those_that_the_code_uses(store: Store) -> None:
    with store.database.read() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []


def test_adapters_live_as_in_sqlite(store: Store, folder: Make, tmp_path: Path, url: str) -> None:
    composed = Composition("svd", (StackItem("a@1", 0.5),), 0.25, rank=4)
    store.adapters.publish("a", "t", folder("1"), META)
    store.adapters.publish("a", "t", folder("2"), AdapterMeta(4, 8.0, composed=composed))
    assert store.adapters.publish("a", "t", folder("1"), META).version == 1  # the same content is the same version
    store.adapters.publish("shared", "", folder("3"), META)
    store.adapters.set_alias("a", 1, "t", "old")
    store.close()
    again = Store.open(tmp_path / "state", url.replace("postgresql+psycopg", "postgresql"))
    record = again.adapters.get("a", "t")
    assert [v.version for v in record.versions] == [1, 2]
    assert record.versions[1].meta.composed == composed
    figures = record.versions[0].meta.metrics
    assert (math.isnan(figures["loss"]), figures["worst"], figures["best"]) == (True, -math.inf, 0.5)
    assert [r.name for r in again.adapters.list("t")[0]] == ["a", "shared"]
    with pytest.raises(Error) as caught:
        again.adapters.resolve("a", "other")
    assert caught.value.code is Code.NOT_FOUND
    again.adapters.remove_alias("a", "t", "old")
    again.adapters.touch([record.versions[0].digest], "t")
    again.adapters.flush()
    again.adapters.delete("a", "t")
    assert len(again.collect_orphans()) == 2
    assert examine(again.database, again.blobs) == []
    again.close()


def test_jobs_and_events_of_any_number(store: Store) -> None:
    new = JobRequest(name="a", dataset_id="ds-1", tenant="t", idempotency_key="k")
    job = store.jobs.create(new)
    assert store.jobs.create(new).id == job.id
    store.jobs.move(job.id, JobState.RUNNING)
    for step in range(3):
        metrics = {"loss": math.nan if step == 1 else 1.0, "norm": math.inf}
        store.jobs.append_event(job.id, TrainEvent(TrainEventType.STEP, step=step, total_steps=3, metrics=metrics))
    losses = [r.event.metrics.get("loss") for r in store.jobs.events(job.id) if r.event.type is TrainEventType.STEP]
    assert [str(x) for x in losses] == ["1.0", "nan", "1.0"]
    assert store.jobs.get(job.id).metrics["norm"] == math.inf
    assert examine(store.database, store.blobs) == []


def test_two_servers_on_one_database(store: Store, url: str, folder: Make, tmp_path: Path) -> None:
    """Each has a state directory of its own; numbers follow each other and nobody is refused."""
    other = Store.open(tmp_path / "other", url)
    folders = [folder(f"c{i}") for i in range(12)]
    found: list[int] = []
    start = threading.Barrier(4)

    def publish(mine: Store, paths: list[Path]) -> None:
        start.wait()
        for path in paths:
            found.append(mine.adapters.publish("a", "t", path, AdapterMeta(4, 8.0)).version)

    threads = [threading.Thread(target=publish, args=((store, other)[i % 2], folders[i::4])) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == list(range(1, 13))
    other.close()


def test_the_doctor_mends_here_too(store: Store, folder: Make) -> None:
    store.adapters.publish("a", "t", folder("1"), AdapterMeta(4, 8.0))
    shutil.rmtree(folder_of(store, "a", "t"))
    found = examine(store.database, store.blobs)
    assert [f.subject for f in found] == ["a@1"]
    repair(store.database, store.blobs, found)
    assert examine(store.database, store.blobs) == []


def test_datasets_that_jobs_have(store: Store, tmp_path: Path) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_text("rows")
    one = store.datasets.put(source, "t")
    job = store.jobs.create(JobRequest("acme", "ds-0", "t", TrainSpec(replay=one.id)))
    with pytest.raises(Error, match=job.id):
        store.datasets.delete(one.id, "t")
    store.jobs.move(job.id, JobState.CANCELLED)
    assert store.datasets.delete(one.id, "t") == one


def test_datasets_in_parts(store: Store, tmp_path: Path) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_text("rows")
    store.quotas.set("tenant:t", {"stored_bytes": 4})
    upload = store.uploads.create("t", "rows.jsonl", 4, seconds=60, most=1)
    part = store.uploads.add_part(upload.id, "t", source, most=1)
    assert store.uploads.parts(upload.id, "t") == {part.id: part}
    with pytest.raises(Error, match="stored bytes is limited to 4"):
        store.datasets.put(source, "t")
    one = store.datasets.put(source, "t", upload_id=upload.id)
    assert store.uploads.get(upload.id, "t").dataset_id == one.id
    assert store.uploads.drop_expired() == 0
    assert store.collect_orphans() == ()


def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(Error) as caught:
        Store.open(tmp_path / "state", f"postgresql+psycopg://x@/x?host={tmp_path}")
    assert caught.value.code is Code.UNAVAILABLE


def test_field_c_a_server_that_goes_away_and_comes_back(store: Store, postgres: Postgres, folder: Make) -> None:
    for name in ("warm", "cold"):
        store.adapters.publish(name, "t", folder(name), META)
    resolver = StackResolver(store)

    def resolved(name: str) -> list[str]:
        return [e.adapter.ref for e in asyncio.run(resolver.resolve([StackItem(name)], "t")).entries]

    assert resolved("warm") == ["warm@1"]
    postgres.stop()
    try:
        with structlog.testing.capture_logs() as logs:
            for _ in range(20):
                assert resolved("warm") == ["warm@1"]
            for use in (lambda: resolved("cold"), lambda: store.adapters.delete("warm", "t")):
                with pytest.raises(Error, match="the database cannot be used: ") as caught:
                    use()
                assert (caught.value.code, caught.value.reason) == (Code.UNAVAILABLE, "DATABASE_UNAVAILABLE")
        assert len(logs) == 1
    finally:
        postgres.start()
    assert resolved("cold") == ["cold@1"]  # the same store, opened once
    store.adapters.delete("warm", "t")
    with pytest.raises(Error) as caught:
        resolved("warm")
    assert caught.value.code is Code.NOT_FOUND


async def test_keys_are_followed_by_every_server_and_outlive_the_database(
    store: Store, url: str, postgres: Postgres, tmp_path: Path
) -> None:
    other = await asyncio.to_thread(Store.open, tmp_path / "other", url)
    ring = KeyRing(other.keys)
    await ring.start()
    kept, gone = ApiKey.generate(), ApiKey.generate()
    for key in (kept, gone):
        made = store.keys.create(key, "t", [Scope.INFER], adapters=["a"])
        assert made == store.keys.get(key.id)
        assert await ring.principal(key) == Principal("t", frozenset({Scope.INFER}), key.id, frozenset({"a"}))
    store.keys.revoke(gone.id)
    revoked = time.monotonic()
    while isinstance(await ring.principal(gone), Principal):
        assert time.monotonic() - revoked < 2.0
        await asyncio.sleep(0.05)
    await asyncio.to_thread(postgres.stop)
    try:
        with pytest.raises(Error) as caught:
            await ring.principal(ApiKey.generate())
        assert caught.value.reason == "IDENTITY_UNAVAILABLE"
        assert isinstance(await ring.principal(kept), Principal)
    finally:
        await asyncio.to_thread(postgres.start)
    assert await ring.principal(unknown := ApiKey.generate()) == Refused("unknown key", unknown.id)
    await ring.stop()
    other.close()


def test_keys_created_on_two_servers_at_once_are_numbered_in_the_order_of_their_commits(
    store: Store, url: str, tmp_path: Path
) -> None:
    other = Store.open(tmp_path / "other", url)

    def create(mine: Store) -> None:
        for _ in range(10):
            mine.keys.create(ApiKey.generate(), "t", [Scope.INFER])

    threads = [threading.Thread(target=create, args=((store, other)[i % 2],)) for i in range(4)]
    for thread in threads:
        thread.start()
    seen, revision = 0, 0
    while any(thread.is_alive() for thread in threads) or store.keys.changed_since(revision)[0]:
        changed, revision = store.keys.changed_since(revision)
        seen += len(changed)
    assert (seen, revision) == (40, 40)
    other.close()


def test_a_new_database_is_told_from_one_in_use(url: str, tmp_path: Path) -> None:
    assert database.Database.is_new(url)
    Store.open(tmp_path / "state", url).close()
    assert not database.Database.is_new(url)


def test_field_c_a_server_that_never_answers_holds_nobody_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "CONNECT_SECONDS", 2)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # connections are taken, and nothing is ever said
        began = time.monotonic()
        with pytest.raises(Error) as caught:
            database.Database.open(f"postgresql://x@127.0.0.1:{silent.getsockname()[1]}/x")
    assert caught.value.code is Code.UNAVAILABLE
    assert time.monotonic() - began < 20


def test_field_c_no_free_connection_is_a_database_that_is_away(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "CONNECT_SECONDS", 2)
    opened = database.Database.open(url)
    with ExitStack() as held:
        for _ in range(15):  # as where each waits for an answer
            held.enter_context(opened.read())
        with pytest.raises(Error, match="no connection is free") as caught, opened.read():
            pass
    assert caught.value.code is Code.UNAVAILABLE
    with opened.read():
        pass
    opened.close()


async def test_usage_waits_while_the_server_is_away_and_is_added_once(postgres: Postgres, store: Store) -> None:
    """Each of two servers; connections are cut in the middle of what they write."""
    recorders = [UsageRecorder(store.usage, lambda: test_usage.NOON) for _ in range(2)]
    event = RequestFinished(
        "r", "generate", "ann", BASE, 10, 3, 4, 0.5, (), "OK", call=Call("Generate", "r", Principal("ann", frozenset()))
    )

    async def traffic(count: int) -> None:
        for _ in range(count):
            for recorder in recorders:
                recorder.request_finished(event)
            await asyncio.gather(*(recorder.flush() for recorder in recorders), return_exceptions=True)

    writing = asyncio.create_task(traffic(60))
    await asyncio.sleep(0.05)
    await asyncio.to_thread(postgres.stop)
    try:
        await asyncio.wait({writing}, timeout=20)
        with pytest.raises(Error) as caught:
            await recorders[0].flush()
        assert caught.value.code is Code.UNAVAILABLE
    finally:
        await asyncio.to_thread(postgres.start)
    await writing
    for recorder in recorders:
        await recorder.close()
    assert test_usage.totals(test_usage.rows(store.usage)) == Amounts(120, 1200, 480, 360)


async def test_quotas_outlive_a_crash_of_the_server(postgres: Postgres, store: Store, url: str, tmp_path: Path) -> None:
    """With its clock, and with levels that it keeps no log of: who knows them tells them again."""
    other = await asyncio.to_thread(Store.open, tmp_path / "other", url)
    meters = [QuotaMeter(), QuotaMeter()]
    followers = [
        QuotaFollower(meter, mine.quotas, mine.quota_use) for meter, mine in zip(meters, (store, other), strict=True)
    ]
    store.quotas.set("*", {"tokens_per_minute": 60_000, "concurrent": 3})

    async def settle() -> None:
        for follower in (*followers, *followers):
            await follower.step(lambda: None)

    def used() -> list[float]:
        return [rate.seconds * 1000 for meter in meters for rate in meter.rates(ACME)]

    began = time.monotonic()
    await settle()
    assert meters[0].reserve(ACME, 20_000)
    await settle()
    await asyncio.to_thread(postgres.stop)
    try:
        await settle()
        assert all(10_000 < tokens <= 20_000 for tokens in used())
        assert meters[1].reserve(ACME, 30_000)
    finally:
        await asyncio.to_thread(postgres.start)
    await settle()
    await settle()
    flowed = 1000 * (time.monotonic() - began)
    assert all(50_000 - flowed - 1000 <= tokens <= 50_000 for tokens in used()), (used(), flowed)
    await followers[0].leave()
    assert other.quota_use is not None
    assert other.quota_use.reconcile("three", None, None).servers == 1
    other.close()
