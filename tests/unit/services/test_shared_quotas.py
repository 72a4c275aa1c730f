"""Quotas of calls over several servers of one database: what one grants is felt by the others within a second."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import cast

import pytest
import sqlalchemy as sa
import structlog
from hypothesis import HealthCheck, example, given
from hypothesis import strategies as st

from loramux_server.core.callers.keys import ApiKey
from loramux_server.core.callers.principal import Principal, Scope
from loramux_server.core.callers.quota import NO_QUOTAS, Limit, Quota, Quotas
from loramux_server.core.callers.quota_use import Heard, News
from loramux_server.core.errors import Code, Error
from loramux_server.services.access.methods import METHODS
from loramux_server.services.access.quota_follower import RECONCILE_SECONDS, QuotaFollower
from loramux_server.services.access.quotas import QuotaMeter, Reservation
from loramux_server.store.quota_use import LAPSE_SECONDS, QuotaUse
from loramux_server.store.schema import quota_levels
from loramux_server.store.store import Store
from tests.examples import examples

ACME = Principal("acme", frozenset(Scope), "k1")
GENERATE, LIST = METHODS["loramux.v1.InferenceService/Generate"], METHODS["loramux.v1.AdapterService/ListAdapters"]
TICK = RECONCILE_SECONDS


class Clock:
    now = 1000.0


class Use(QuotaUse):
    """What a server tells, and a database that can be away."""

    def __init__(self, store: Store, clock: Clock) -> None:
        super().__init__(store.database, lambda _: clock.now + 1_800_000_000.0)
        self.told: list[News] = []
        self.reconciliations = 0
        self.away = False
        self.meanwhile: Callable[[], object] = lambda: None

    def reconcile(self, server: str, news: News | None, since: float | None) -> Heard:
        self.reconciliations += 1
        self.meanwhile()
        if self.away:
            raise Error(Code.UNAVAILABLE, "connection to 10.0.0.7 refused", reason="DATABASE_UNAVAILABLE")
        heard = super().reconcile(server, news, since)
        if news is not None:
            self.told.append(news)
        return heard


class Server:
    """What there is of a server, with a monotonic clock that began at another time than those of others."""

    _starts = itertools.count(1)

    def __init__(self, store: Store, clock: Clock) -> None:
        start = 777.0 * next(self._starts)
        self.meter = QuotaMeter(lambda: clock.now - start)
        self.use = Use(store, clock)
        self.follower = QuotaFollower(self.meter, store.quotas, self.use)

    async def tick(self) -> None:
        await self.follower.step(lambda: None)

    def reserve(self, tokens: int, who: Principal = ACME) -> Reservation | None:
        try:
            return self.meter.reserve(who, tokens)
        except Error:
            return None

    def wait(self, tokens: int) -> float | None:
        with pytest.raises(Error) as caught:
            self.meter.reserve(ACME, tokens)
        return caught.value.retry_after

    def used(self, who: Principal = ACME) -> float:
        """Tokens in use, as the headers' numbers tell."""
        (rate,) = (rate for rate in self.meter.rates(who) if rate.limit == "tokens_per_minute")
        return rate.seconds * rate.size / 60.0

    @contextmanager
    def running(self, calls: int = 1) -> Iterator[None]:
        with ExitStack() as stack:
            for _ in range(calls):
                stack.enter_context(self.meter.admit(ACME, GENERATE))
            yield

    def refused(self) -> Limit:
        with pytest.raises(Error) as caught, self.running():
            pass
        assert caught.value.exceeded is not None
        return cast("Limit", caught.value.exceeded.limit)


class Site:
    """Servers of one database."""

    def __init__(self, store: Store) -> None:
        self.store, self.clock = store, Clock()

    def limit(self, subject: str = "*", **limits: int | None) -> None:
        self.store.quotas.set(subject, limits)  # type: ignore[arg-type]

    async def servers(self, count: int = 2) -> list[Server]:
        """Servers that know each other."""
        found = [Server(self.store, self.clock) for _ in range(count)]
        await self.settle(found)
        return found

    @staticmethod
    async def settle(servers: list[Server]) -> None:
        """What happened is told, and heard by all."""
        for server in (*servers, *servers):
            await server.tick()

    async def later(self, seconds: float, servers: list[Server]) -> None:
        """Time passes, and servers reconcile as often as they do."""
        end = self.clock.now + seconds
        while self.clock.now < end:
            self.clock.now = min(end, self.clock.now + TICK)
            for server in servers:
                await server.tick()

    def levels(self) -> int:
        with self.store.database.read() as connection:
            return int(connection.scalar(sa.select(sa.func.count()).select_from(quota_levels)) or 0)


@pytest.fixture
def site(store: Store) -> Site:
    return Site(store)


@pytest.mark.parametrize("count", [2, 3])
async def test_servers_together_grant_the_limit_and_what_others_grant_in_a_second(site: Site, count: int) -> None:
    site.limit(tokens_per_minute=600)
    servers = await site.servers(count)
    granted: list[tuple[float, int]] = []
    minutes = count + 1
    for _ in range(4 * 60 * minutes):
        for server in servers:
            while (reservation := server.reserve(10)) is not None:
                reservation.spent = 10
                granted.append((site.clock.now, 10))
        site.clock.now += 0.25
        if site.clock.now % TICK == 0:
            for server in servers:
                await server.tick()

    def total(begin: float, end: float) -> int:
        return sum(tokens for at, tokens in granted if 1000 + begin <= at < 1000 + end)

    assert total(0, 1) <= count * (600 + 10), "each had a full bucket of its own for the first second"
    assert total(0, 60 * minutes) <= 600 + minutes * 600 + (count - 1) * (600 + 10)
    # What was granted too much was paid back. From then on it is the limit, and not less.
    within = count * 2 * 10
    assert 1200 - within <= total(60 * (minutes - 2), 60 * minutes) <= 1200 + within


async def test_what_one_took_is_felt_by_the_other_within_a_second(site: Site) -> None:
    site.limit(tokens_per_minute=600, requests_per_minute=60)
    one, two = servers = await site.servers()
    held = [one.reserve(300) for _ in range(2)]
    for _ in range(30):
        with one.meter.admit(ACME, LIST):
            pass
    await site.later(1, servers)
    assert two.wait(100) == pytest.approx(9.0)  # of the 600, 10 have flowed back
    rates = {rate.limit: (rate.size, rate.left) for rate in two.meter.rates(ACME)}
    assert rates == {"requests_per_minute": (60, 31), "tokens_per_minute": (600, 10)}
    assert all(held)


async def test_a_bucket_is_filled_once_and_not_by_each_server(site: Site) -> None:
    site.limit(tokens_per_minute=600)
    servers = await site.servers()
    for server in servers:
        assert server.reserve(300)
    await site.later(30, servers)
    assert [server.used() for server in servers] == pytest.approx([300, 300])
    assert servers[0].reserve(300)
    await site.later(1, servers)
    assert servers[1].wait(300) == pytest.approx(29)
    await site.later(59, servers)
    assert [server.used() for server in servers] == pytest.approx([0, 0])
    for server in servers:  # also where each takes all the time: 20 a second together, and 10 flow back
        assert server.used() == 0
    for _ in range(20):
        for server in servers:
            assert server.reserve(10)
        await site.later(1, servers)
    assert [server.used() for server in servers] == pytest.approx([200, 200], abs=11)


async def test_what_one_gives_back_is_felt_by_the_other(site: Site) -> None:
    site.limit(tokens_per_minute=600)
    one, two = servers = await site.servers()
    reservation = one.reserve(600)
    assert reservation is not None
    await site.later(1, servers)
    assert two.reserve(300) is None
    with reservation:
        reservation.spent = 100
    await site.later(1, servers)
    assert [server.used() for server in servers] == pytest.approx([80, 80])
    assert two.reserve(500)


async def test_the_limits_of_tenant_and_key_are_both_shared(site: Site) -> None:
    site.limit(tokens_per_minute=600)
    one, two = servers = await site.servers()
    site.store.keys.create(ApiKey("k1", "s" * 43), "acme", [Scope.INFER])
    site.limit("key:k1", tokens_per_minute=60)
    await site.settle(servers)
    assert one.reserve(60)
    await site.later(1, servers)
    with pytest.raises(Error, match="key:k1"):
        two.meter.reserve(ACME, 30)
    other = Principal("acme", frozenset(Scope), "k2")
    assert two.used(other) == pytest.approx(50)


async def test_running_and_waiting_calls_count_over_all_servers(site: Site) -> None:
    site.limit(concurrent=3, queued=2)
    one, two = servers = await site.servers()
    with one.running(2):
        await site.settle(servers)
        assert two.refused() == "queued"
        with one.meter.admit(Principal("pine", frozenset(Scope)), GENERATE):
            pass
    await site.settle(servers)
    with ExitStack() as calls:
        for _ in range(2):
            calls.enter_context(one.meter.admit(ACME, GENERATE)).answered()
        await site.settle(servers)
        with two.running(1):
            assert two.refused() == "concurrent"
            await site.settle(servers)
            assert one.refused() == "concurrent"
        await site.settle(servers)
        with one.running(1):
            assert one.refused() == "concurrent"
    await site.settle(servers)
    with two.running(2):
        pass


async def test_calls_that_go_on_count_as_long_as_they_do(site: Site) -> None:
    site.limit(concurrent=1)
    one, two = servers = await site.servers()
    with one.running():
        await site.later(10 * LAPSE_SECONDS, servers)
        assert two.refused() == "concurrent"


async def test_a_dead_servers_calls_lapse(site: Site) -> None:
    site.limit(concurrent=1)
    dead, two = await site.servers()
    with dead.running():
        await site.settle([dead, two])
        await site.later(LAPSE_SECONDS, [two])
        assert two.refused() == "concurrent"
        await site.later(1, [two])
        with two.running():
            pass


async def test_a_server_that_stops_leaves_its_tokens_and_no_calls(site: Site) -> None:
    site.limit(concurrent=1, tokens_per_minute=600)
    one, two = await site.servers()
    with one.running():
        await site.settle([one, two])
        assert two.refused() == "concurrent"
        assert one.reserve(300)
        await one.follower.leave()
        await two.tick()
        with two.running():
            pass
    three = Server(site.store, site.clock)
    await site.settle([three, two])
    assert three.used() == 300


async def test_a_server_alone_tells_nothing_until_another_comes(site: Site) -> None:
    site.limit(tokens_per_minute=600, concurrent=4)
    one = Server(site.store, site.clock)
    await one.tick()
    with one.running():
        for _ in range(60):
            assert one.reserve(10)
            await site.later(1, [one])
    assert one.reserve(200)
    assert site.levels() == 0
    assert len(one.use.told) <= 21, "a sign of life every three seconds"
    before = one.used()
    two = Server(site.store, site.clock)
    with one.running():
        await site.settle([two, one, two])
        assert [one.used(), two.used()] == pytest.approx([before, before])
        assert two.reserve(600 - int(before) + 10) is None
        assert two.meter.elsewhere["tenant:acme"] == (1, 1)


async def test_nothing_is_asked_where_no_calls_are_limited(site: Site) -> None:
    site.limit(stored_bytes=5)
    one = Server(site.store, site.clock)
    await site.later(10, [one])
    assert one.use.reconciliations == 0


async def test_servers_that_have_nothing_new_write_nothing_but_signs_of_life(site: Site) -> None:
    site.limit(tokens_per_minute=600, concurrent=4)
    servers = await site.servers()
    assert servers[0].reserve(300)
    await site.later(1, servers)
    for server in servers:
        server.use.told.clear()
    await site.later(30, servers)
    for server in servers:
        assert [news.taken for news in server.use.told] == [()] * 10
    assert servers[1].used() == pytest.approx(0)
    with servers[0].running():
        pass
    site.limit("tenant:acme", tokens_per_minute=None, concurrent=None, requests_per_minute=None)
    servers[1].use.told.clear()
    servers[1].reserve(100, Principal("nobody", frozenset(Scope)))
    await site.settle(servers)
    assert [each.subject for news in servers[1].use.told for each in news.taken] == ["tenant:nobody"]


async def test_limits_that_change_hold_for_what_all_servers_took(site: Site) -> None:
    site.limit(tokens_per_minute=600)
    servers = await site.servers()
    for server in servers:
        assert server.reserve(200)
    await site.settle(servers)
    await site.settle(servers)
    site.limit(tokens_per_minute=300)
    await site.settle(servers)
    assert [server.wait(100) for server in servers] == pytest.approx(
        [40.0] * 2
    )  # 400 of 300: 200 must flow, 5 a second
    await site.later(20, servers)
    assert [server.used() for server in servers] == pytest.approx([300.0] * 2)
    site.limit(tokens_per_minute=None)
    await site.settle(servers)
    assert servers[0].reserve(5000)
    site.limit(tokens_per_minute=1200)
    await site.settle(servers)
    assert servers[0].reserve(600)
    await site.later(1, servers)
    assert servers[1].used() <= 600 + 300, "what was taken without a limit never counts"


async def test_without_the_database_what_was_known_holds_and_each_counts_its_own(site: Site) -> None:
    site.limit(tokens_per_minute=600, concurrent=2)
    one, two = servers = await site.servers()
    assert one.reserve(400)
    with one.running():
        await site.later(1, servers)
        for server in servers:
            server.use.away = True
        with structlog.testing.capture_logs() as logs:
            await site.later(2, servers)
            assert [server.used() for server in servers] == pytest.approx([370, 370])
            assert two.reserve(230)
            assert two.reserve(1) is None
            with two.running():
                assert two.refused() == "concurrent"
        assert [log["event"] for log in logs] == ["quotas not followed, the last ones known hold"] * 2
        assert one.reserve(130)
        with structlog.testing.capture_logs() as logs:
            for server in servers:
                server.use.away = False
            await site.settle(servers)
            await site.settle(servers)
        assert [log["event"] for log in logs] == ["quotas followed again"] * 2
    assert [server.used() for server in servers] == pytest.approx([730, 730])
    await site.later(13, servers)
    assert [server.wait(10) for server in servers] == pytest.approx([1.0, 1.0])


async def test_after_a_long_time_without_the_database_a_tenant_waits_for_what_is_in_use_now(site: Site) -> None:
    site.limit(tokens_per_minute=600, concurrent=2)
    one, two = servers = await site.servers()
    with one.running():
        await site.settle(servers)
        for server in servers:
            server.use.away = True
        await site.later(LAPSE_SECONDS + 1, servers)
        with two.running(2):  # nobody knows what runs elsewhere by now
            pass
        for _ in range(600):
            for server in servers:
                assert server.reserve(10)
            await site.later(1, servers)
        assert [server.used() for server in servers] == pytest.approx([0, 0])
        for server in servers:
            assert server.reserve(600)
            server.use.away = False
        await site.later(1, servers)
        await site.settle(servers)
    assert [server.used() for server in servers] == pytest.approx([1190, 1190], abs=11)
    assert servers[0].wait(10) == pytest.approx(60, abs=2)


async def test_what_happens_while_the_database_is_asked_is_told_the_next_time(site: Site) -> None:
    site.limit(tokens_per_minute=600)
    one, two = servers = await site.servers()
    one.use.meanwhile = lambda: one.reserve(10)
    for away in (False, True, False):
        one.use.away = away
        assert one.reserve(100)
        await one.tick()
    one.use.meanwhile = lambda: None
    assert one.used() == pytest.approx(330)
    await site.settle(servers)
    assert [one.used(), two.used()] == pytest.approx([330, 330])


async def test_what_may_have_been_told_is_told_again(site: Site) -> None:
    """The connection breaks after the commit: rather too much in use for a minute than too little."""
    site.limit(tokens_per_minute=600)
    one, two = servers = await site.servers()
    assert one.reserve(100)
    reconcile = one.use.reconcile

    def broken(server: str, news: News | None, since: float | None) -> Heard:
        reconcile(server, news, since)
        raise Error(Code.UNAVAILABLE, "the connection broke")

    one.use.reconcile = broken  # type: ignore[method-assign]
    await one.tick()
    assert one.used() == 100
    one.use.reconcile = reconcile  # type: ignore[method-assign]
    await site.settle(servers)
    assert [one.used(), two.used()] == [200, 200]


STEPS = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.sampled_from(["take", "take", "end", "reconcile"]),
        st.integers(0, 400),
        st.sampled_from([0.0, 0.0, 0.1, 0.9, 3.0, 20.0]),
    ),
    max_size=40,
)
PER_MINUTE = 600
ROUNDING = 1e-3
"""Seconds since the epoch are told in microseconds at best."""
_tenants = itertools.count()


class Oracle:
    """One bucket for all servers, and what they had not told at any time."""

    def __init__(self) -> None:
        self._done: list[tuple[float, float]] = []
        self._untold = [0.0] * 3
        self.most_taken = self.most_returned = 0.0

    def take(self, server: int, amount: float, now: float) -> None:
        self._done.append((now, amount))
        self._untold[server] += amount
        self.most_taken = max(self.most_taken, sum(max(0.0, each) for each in self._untold))
        self.most_returned = max(self.most_returned, sum(max(0.0, -each) for each in self._untold))

    def told(self, server: int) -> None:
        self._untold[server] = 0.0

    def used(self, now: float) -> float:
        """What was taken since some moment, less what flowed back since: the most of all moments."""
        found = [0.0]
        for i, (since, _) in enumerate(self._done):
            found.append(sum(amount for _, amount in self._done[i:]) - (now - since) * PER_MINUTE / 60)
        return max(found)


@examples(120, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(STEPS)
def test_any_interleaving_is_near_one_bucket(store: Store, steps: list[tuple[int, str, int, float]]) -> None:
    """By no more than was on its way at one time: taken, or given back, and not told yet."""

    async def play() -> None:
        site, oracle = Site(store), Oracle()
        who = Principal(f"t{next(_tenants)}", frozenset(Scope))
        site.clock.now = 1000.0 * (1 + next(_tenants))
        site.limit(f"tenant:{who.tenant}", tokens_per_minute=PER_MINUTE)
        servers = await site.servers(3)
        reserved: list[list[tuple[Reservation, int]]] = [[], [], []]

        async def reconcile(index: int) -> None:
            await servers[index].follower.reconcile()
            oracle.told(index)

        for index, action, amount, later in steps:
            now = site.clock.now
            if action == "take" and (reservation := servers[index].reserve(amount, who)) is not None:
                reserved[index].append((reservation, amount))
                oracle.take(index, amount, now)
            elif action == "end" and reserved[index]:
                reservation, tokens = reserved[index].pop(0)
                with reservation:
                    reservation.spent = min(amount, tokens)
                oracle.take(index, reservation.spent - tokens, now)
            elif action == "reconcile":
                await reconcile(index)
            end = now + later
            while site.clock.now < end:  # nobody is silent for longer than what is summed up
                site.clock.now = min(end, site.clock.now + 3.0)
                for each in range(3):
                    await reconcile(each)
        for each in (0, 1, 2, 0, 1):
            await reconcile(each)
        found, right = [server.used(who) for server in servers], oracle.used(site.clock.now)
        assert found == pytest.approx([found[0]] * 3, abs=ROUNDING)
        assert right - oracle.most_returned - ROUNDING <= found[0] <= right + oracle.most_taken + ROUNDING

    asyncio.run(play())


@examples(60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(STEPS)
@example(  # what is given back long after it was told
    steps=[
        (0, "take", 61, 0.0),
        (0, "reconcile", 0, 0.0),
        (0, "take", 0, 3.0),
        (0, "end", 0, 3.0),
        (0, "reconcile", 0, 0.0),
    ]
)
def test_a_server_whose_peers_are_quiet_counts_as_one_alone(
    store: Store, steps: list[tuple[int, str, int, float]]
) -> None:
    async def play() -> None:
        site = Site(store)
        who = Principal(f"t{next(_tenants)}", frozenset(Scope))
        site.clock.now = 1000.0 * (1 + next(_tenants))
        site.limit(f"tenant:{who.tenant}", tokens_per_minute=PER_MINUTE)
        servers = await site.servers()
        alone = QuotaMeter(lambda: site.clock.now)
        alone.quotas = site.store.quotas.read()
        both: list[tuple[Reservation, Reservation]] = []
        for _, action, amount, later in steps:
            if action == "take":
                reservation = servers[0].reserve(amount, who)
                try:
                    other = alone.reserve(who, amount)
                except Error:
                    assert reservation is None
                else:
                    assert reservation is not None
                    both.append((reservation, other))
            elif action == "end" and both:
                for reservation in both.pop(0):
                    with reservation:
                        reservation.spent = amount // 4
            elif action == "reconcile":
                await site.settle(servers)
            site.clock.now += later
            ((mine, right),) = zip(servers[0].meter.rates(who), alone.rates(who), strict=True)
            assert mine.seconds == pytest.approx(right.seconds, abs=ROUNDING)

    asyncio.run(play())


def test_quotas_by_subject() -> None:
    quotas = Quotas({"*": Quota(concurrent=3), "tenant:acme": Quota(queued=2), "key:k": Quota(concurrent=1)})
    assert quotas.of("tenant:acme") == Quota(concurrent=3, queued=2)
    assert (quotas.of("tenant:pine"), quotas.of("key:k"), quotas.of("key:l")) == (
        Quota(concurrent=3),
        Quota(concurrent=1),
        Quota(),
    )
    assert quotas.of_calls
    assert not NO_QUOTAS.of_calls
    assert not Quotas({"*": Quota(adapters=1)}).of_calls
