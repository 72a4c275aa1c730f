"""What servers tell each other of quotas: levels put together, counts of those that live, nothing kept for long."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
import sqlalchemy as sa

from loramux_server.core.callers.quota_use import Counts, Level, News, Taken
from loramux_server.store.quota_use import KEEP_SECONDS, LAPSE_SECONDS, SLACK_SECONDS, QuotaUse
from loramux_server.store.schema import quota_levels, quota_servers
from loramux_server.store.store import Store


class Clock:
    """The database's."""

    now = 1_800_000_000.0

    def __call__(self, _: sa.Connection) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def use(store: Store, clock: Clock) -> QuotaUse:
    return QuotaUse(store.database, clock)


def news(taken: float, least: float | None = None, used: float | None = None, subject: str = "tenant:acme") -> News:
    least = max(0.0, taken) if least is None else least
    return News({}, (Taken(subject, "tokens_per_minute", 600, taken, least, least if used is None else used),))


def level(use: QuotaUse, subject: str = "tenant:acme") -> float | None:
    return {each.subject: each.used for each in use.reconcile("nobody", None, None).levels}.get(subject)


def count(store: Store, table: sa.Table) -> int:
    with store.database.read() as connection:
        return int(connection.scalar(sa.select(sa.func.count()).select_from(table)) or 0)


def test_what_servers_took_is_added_and_flows_back_once(use: QuotaUse, clock: Clock) -> None:
    use.reconcile("one", news(300), None)
    clock.now += 10  # 100 flow back
    use.reconcile("two", news(150), None)
    assert level(use) == pytest.approx(350)
    clock.now += 5
    assert use.reconcile("one", None, None).levels == (Level("tenant:acme", "tokens_per_minute", 350.0, 5.0),)
    use.reconcile("one", news(-100), None)
    assert level(use) == pytest.approx(200)
    use.reconcile("two", news(-900), None)
    assert level(use) == 0


def test_a_bucket_that_was_full_holds_what_was_taken_since(use: QuotaUse, clock: Clock) -> None:
    use.reconcile("one", news(30), None)
    clock.now += 60
    use.reconcile("one", news(taken=-450, least=100), None)  # 550 came back to a full bucket, and then 100 were taken
    assert level(use) == 100
    clock.now += 60
    use.reconcile("one", news(taken=100, least=95), None)  # 5 of them have flowed back; an hour's flow is not saved up
    assert level(use) == 95


def test_a_level_that_the_database_lost_is_told_by_who_knows_it(use: QuotaUse) -> None:
    use.reconcile("one", news(taken=10, least=10, used=410), None)
    assert level(use) == 410
    use.reconcile("two", news(taken=10, least=10, used=999), None)
    assert level(use) == 420


def test_only_what_changed_since_the_last_reading_is_read(use: QuotaUse, clock: Clock) -> None:
    use.reconcile("one", news(300, subject="tenant:old"), None)
    clock.now += SLACK_SECONDS + 2
    since = use.reconcile("two", None, None).now
    assert since == clock.now
    clock.now += 1
    use.reconcile("one", news(5, subject="tenant:new"), None)
    assert [each.subject for each in use.reconcile("two", None, since).levels] == ["tenant:new"]
    assert len(use.reconcile("two", None, None).levels) == 2


def test_a_clock_that_is_put_back_hides_nothing_and_stops_no_flow(use: QuotaUse, clock: Clock) -> None:
    use.reconcile("one", news(300), None)
    since = use.reconcile("two", None, None).now
    clock.now -= 3600
    use.reconcile("one", news(100), None)
    (found,) = use.reconcile("two", None, since).levels
    assert (found.used, found.age) == (400, 0)
    clock.now += 10
    use.reconcile("one", news(1), None)
    assert level(use) == pytest.approx(301)


def test_calls_of_servers_that_live_are_added_up(use: QuotaUse, clock: Clock) -> None:
    use.reconcile("one", News({"tenant:acme": Counts(2, 1), "key:k": Counts(1, 0)}), None)
    use.reconcile("two", News({"tenant:acme": Counts(3, 3)}), None)
    heard = use.reconcile("three", None, None)
    assert (heard.servers, heard.counts) == (2, {"tenant:acme": Counts(5, 4), "key:k": Counts(1, 0)})
    heard = use.reconcile("one", News({}), None)
    assert (heard.servers, heard.counts) == (1, {"tenant:acme": Counts(3, 3)})
    clock.now += LAPSE_SECONDS + 1
    use.reconcile("one", News({"tenant:acme": Counts(1, 1)}), None)
    assert use.reconcile("three", None, None).counts == {"tenant:acme": Counts(1, 1)}
    assert use.reconcile("one", None, None).servers == 0
    clock.now -= 3600  # what was told in the future is told by nobody who lives
    assert use.reconcile("three", None, None).servers == 0
    use.leave("one", news(7))
    assert use.reconcile("three", None, None).counts == {}
    assert level(use) == 7


def test_rows_that_say_nothing_any_more_are_swept(use: QuotaUse, clock: Clock, store: Store) -> None:
    for i in range(50):
        use.reconcile(f"server-{i}", news(10, subject=f"tenant:t{i}"), None)
    clock.now += KEEP_SECONDS + 1
    use.reconcile("one", news(10), None)
    assert (count(store, quota_levels), count(store, quota_servers)) == (1, 1)
    clock.now -= 3600
    use.reconcile("two", news(10, subject="tenant:pine"), None)
    assert (count(store, quota_levels), count(store, quota_servers)) == (1, 1)


def test_many_servers_at_once_lose_nothing(use: QuotaUse, store: Store, clock: Clock) -> None:
    def tell(server: str) -> None:
        mine = QuotaUse(store.database, clock)
        for _ in range(10):
            mine.reconcile(server, news(3), None)

    threads = [threading.Thread(target=tell, args=(f"server-{i}",)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert level(use) == 120


def test_thousands_of_tenants_are_told_at_once(use: QuotaUse) -> None:
    taken = tuple(news(i, subject=f"tenant:t{i}").taken[0] for i in range(1, 3000))
    use.reconcile("one", News({}, taken), None)
    use.reconcile("one", News({}, taken), None)
    assert {each.subject: each.used for each in use.reconcile("two", None, None).levels} == {
        f"tenant:t{i}": 2 * i for i in range(1, 3000)
    }


def test_the_clock_is_the_databases(store: Store) -> None:
    before = time.time()
    heard = QuotaUse(store.database).reconcile("one", News({}), None)
    assert before - 1 <= heard.now <= time.time() + 1


def test_a_server_with_a_database_of_its_own_has_nobody_to_tell(tmp_path: Path) -> None:
    own = Store.open(tmp_path / "own")
    assert own.quota_use is None
    own.close()
    shared = Store.open(tmp_path / "other", f"sqlite:///{tmp_path}/shared.db")
    assert shared.quota_use is not None
    shared.close()
