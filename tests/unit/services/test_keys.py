"""Who calls, by API key: over a real database, as every door asks it."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import AsyncIterator

import pytest
import structlog.testing

from loramux_server.core.callers.keys import ApiKey
from loramux_server.core.callers.principal import LOCAL, Principal, Scope
from loramux_server.core.errors import Code, Error
from loramux_server.services.access import keys as keys_module
from loramux_server.services.access.bearer import BearerAuthenticator
from loramux_server.services.access.credentials import Credentials
from loramux_server.services.access.keys import KNOWN_SECONDS, KeyRing
from loramux_server.store.keys import KeyRecord, KeyTable
from loramux_server.store.store import Store


class CountedTable(KeyTable):
    """Counts readings, and fails them while ``away``."""

    readings = 0
    away = False

    def changed_since(self, revision: int) -> tuple[tuple[KeyRecord, ...], int]:
        self.readings += 1
        if self.away:
            raise Error(Code.UNAVAILABLE, "connection to 10.0.0.7 refused", reason="DATABASE_UNAVAILABLE")
        return super().changed_since(revision)


class Clock:
    """The monotonic clock, which a test can put forward."""

    ahead = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.ahead


@pytest.fixture
def table(store: Store) -> CountedTable:
    return CountedTable(store.database)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def ring(table: CountedTable, clock: Clock) -> AsyncIterator[KeyRing]:
    ring = KeyRing(table, clock=clock)
    await ring.start()
    yield ring
    await ring.stop()


@pytest.fixture
def callers(ring: KeyRing) -> BearerAuthenticator:
    return BearerAuthenticator(ring)


def show(key: ApiKey | str, scheme: str = "Bearer") -> Credentials:
    return Credentials((f"{scheme} {key.text if isinstance(key, ApiKey) else key}",), peer="ipv4:192.0.2.1:5")


async def refused(callers: BearerAuthenticator, credentials: Credentials) -> Error:
    error = await outcome(callers, credentials)
    assert error is not None
    return error


async def refused_in_time(callers: BearerAuthenticator, credentials: Credentials) -> Error:
    """The refusal that must come within the 2 s that changes may take."""
    async with asyncio.timeout(2.0):
        while True:
            if (error := await outcome(callers, credentials)) is not None:
                return error
            await asyncio.sleep(0.05)


async def outcome(callers: BearerAuthenticator, credentials: Credentials) -> Error | None:
    try:
        await callers.authenticate(credentials)
    except Error as error:
        return error
    return None


async def test_without_a_key_everybody_is_the_default_tenant(callers: BearerAuthenticator) -> None:
    assert callers.open
    for credentials in (Credentials(), show("sk-of-another-server"), show(ApiKey.generate())):
        assert await callers.authenticate(credentials) is LOCAL


async def test_a_key_says_who_calls_and_what_they_may(callers: BearerAuthenticator, table: KeyTable) -> None:
    key = ApiKey.generate()
    table.create(key, "acme", [Scope.INFER, Scope.TRAIN], adapters=["formal"])
    expected = Principal("acme", frozenset({Scope.INFER, Scope.TRAIN}), key.id, frozenset({"formal"}))
    # At once, though the server was open a moment ago: nobody's data lands with the default tenant.
    assert await callers.authenticate(show(key)) == expected
    for scheme in ("bearer", "BEARER", "Bearer  "):
        assert await callers.authenticate(show(key, scheme)) == expected


async def test_the_first_key_closes_the_server_even_if_it_is_revoked(
    callers: BearerAuthenticator, table: KeyTable
) -> None:
    key = ApiKey.generate()
    table.create(key, "acme", [Scope.INFER])
    table.revoke(key.id)
    error = await refused_in_time(callers, Credentials())
    assert (error.code, error.reason) == (Code.UNAUTHENTICATED, "KEY_MISSING")
    assert "authorization: Bearer KEY" in error.message


async def test_a_server_that_must_not_be_open_takes_nobody_without_keys(ring: KeyRing) -> None:
    """As on a public address, or where certificates tell who calls, and the keys are gone."""
    callers = BearerAuthenticator(ring, may_be_open=False)
    assert not callers.open
    assert not callers.knows_callers
    assert (await refused(callers, Credentials())).reason == "KEY_MISSING"
    for shown in ("junk", ApiKey.generate()):
        assert (await refused(callers, show(shown))).reason == "KEY_INVALID"


async def test_all_that_opens_nothing_hears_the_same_and_the_log_tells_which(
    callers: BearerAuthenticator, table: KeyTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loramux_server.services.access.refusals.TOLD_EVERY", 0.0)
    good, gone, old = (ApiKey.generate() for _ in range(3))
    table.create(good, "acme", [Scope.INFER])
    table.create(gone, "acme", [Scope.INFER])
    table.revoke(gone.id)
    table.create(old, "acme", [Scope.INFER], expires=time.time() - 1)
    assert (await callers.authenticate(show(good))).key_id == good.id
    cases = {
        "unknown key": show(ApiKey.generate()),
        "wrong secret": show(ApiKey(good.id, ApiKey.generate().secret)),
        "revoked": show(gone),
        "expired": show(old),
        "not an API key": show("lmx_cut"),
        "another scheme than Bearer": show(good, "Basic"),
        "more than one authorization": Credentials((*show(good).authorization, *show(good).authorization)),
    }
    heard = set()
    with structlog.testing.capture_logs() as log:
        for credentials in cases.values():
            error = await refused(callers, credentials)
            heard.add((error.code, error.reason, error.message))
    assert heard == {(Code.UNAUTHENTICATED, "KEY_INVALID", "the key is not valid")}
    assert [line["cause"] for line in log] == list(cases)
    secrets = [good.secret, gone.secret, old.secret]
    assert not [line for line in log if any(secret in str(line) for secret in secrets)]


@pytest.mark.parametrize(
    "shown",
    ["", "Bearer", "Bearer ", "Bearer a b", "Bearer\tlmx", "Bearer " + "x" * 100_000, "lmx_a_" + "x" * 43, "\x00"],
)
async def test_odd_values_are_refused_without_a_look_into_the_database(
    callers: BearerAuthenticator, table: CountedTable, shown: str
) -> None:
    key = ApiKey.generate()
    table.create(key, "acme", [Scope.INFER])
    await callers.authenticate(show(key))
    before = table.readings
    assert (await refused(callers, Credentials((shown,)))).reason == "KEY_INVALID"
    assert table.readings == before


async def test_a_revoked_key_is_refused_within_two_seconds(callers: BearerAuthenticator, table: KeyTable) -> None:
    key, other = ApiKey.generate(), ApiKey.generate()
    for each in (key, other):
        table.create(each, "acme", [Scope.INFER])
        await callers.authenticate(show(each))
    table.revoke(key.id)
    assert (await refused_in_time(callers, show(key))).reason == "KEY_INVALID"
    assert (await callers.authenticate(show(other))).key_id == other.id


async def test_a_key_expires_while_it_is_known(callers: BearerAuthenticator, table: KeyTable) -> None:
    key = ApiKey.generate()
    table.create(key, "acme", [Scope.INFER], expires=time.time() + 0.3)
    await callers.authenticate(show(key))
    await asyncio.sleep(0.35)
    assert (await refused(callers, show(key))).reason == "KEY_INVALID"


@pytest.mark.slow
async def test_random_keys_cost_neither_queries_nor_memory(
    callers: BearerAuthenticator, ring: KeyRing, table: CountedTable
) -> None:
    good = ApiKey.generate()
    table.create(good, "acme", [Scope.INFER])
    await callers.authenticate(show(good))
    before, began = table.readings, time.monotonic()
    for _ in range(3):
        flood = (refused(callers, show(ApiKey.generate())) for _ in range(500))
        assert {error.reason for error in await asyncio.gather(*flood)} == {"KEY_INVALID"}
        await callers.authenticate(show(good))
    allowed = (time.monotonic() - began) / keys_module.LEAST_SECONDS + 2
    assert table.readings - before <= allowed
    assert list(ring._known) == [good.id]
    assert ring._readings.waiting == []


async def test_a_known_key_costs_no_reading(callers: BearerAuthenticator, table: CountedTable) -> None:
    key = ApiKey.generate()
    table.create(key, "acme", [Scope.INFER])
    await callers.authenticate(show(key))
    before, began = table.readings, time.monotonic()
    for _ in range(2000):
        await callers.authenticate(show(key))
    assert table.readings - before <= (time.monotonic() - began) / keys_module.FOLLOW_SECONDS + 1


async def test_an_unknown_key_takes_the_time_of_a_wrong_secret(
    callers: BearerAuthenticator, table: KeyTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys_module, "LEAST_SECONDS", 0.0)
    key = ApiKey.generate()
    table.create(key, "acme", [Scope.INFER])
    await callers.authenticate(show(key))
    times: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(60):
        for unknown, spent in times.items():
            shown = ApiKey.generate() if unknown else ApiKey(key.id, ApiKey.generate().secret)
            began = time.perf_counter()
            await refused(callers, show(shown))
            spent.append(time.perf_counter() - began)
    # The quarter of each that nothing disturbed.
    unknown_time, wrong_time = (statistics.quantiles(times[each], n=4)[0] for each in (True, False))
    assert 0.5 < unknown_time / wrong_time < 2.0


async def test_known_keys_outlive_the_database_for_a_time(
    callers: BearerAuthenticator, table: CountedTable, clock: Clock
) -> None:
    key = ApiKey.generate()
    table.create(key, "acme", [Scope.INFER])
    await callers.authenticate(show(key))
    table.away = True
    for shown in (ApiKey.generate(), ApiKey(key.id, ApiKey.generate().secret)):
        error = await refused(callers, show(shown))
        assert (error.code, error.reason, error.retry_after) == (Code.UNAVAILABLE, "IDENTITY_UNAVAILABLE", 1.0)
        assert "10.0.0.7" not in error.message
    assert (await refused(callers, show("no key at all"))).reason == "KEY_INVALID"
    clock.ahead = KNOWN_SECONDS - 60
    assert (await callers.authenticate(show(key))).key_id == key.id
    clock.ahead = KNOWN_SECONDS + 1
    assert (await refused(callers, show(key))).reason == "IDENTITY_UNAVAILABLE"
    table.away = False
    assert (await refused(callers, show(ApiKey.generate()))).reason == "KEY_INVALID"  # read again
    assert (await callers.authenticate(show(key))).key_id == key.id


async def test_an_open_server_does_not_stay_open_for_ever_without_its_database(
    callers: BearerAuthenticator, table: CountedTable, clock: Clock
) -> None:
    table.away = True
    assert await callers.authenticate(Credentials()) is LOCAL
    assert (await refused(callers, show(ApiKey.generate()))).reason == "IDENTITY_UNAVAILABLE"
    clock.ahead = KNOWN_SECONDS + 1
    assert (await refused(callers, Credentials())).reason == "IDENTITY_UNAVAILABLE"


async def test_a_database_that_was_set_back_is_read_anew(
    callers: BearerAuthenticator, store: Store, table: KeyTable
) -> None:
    lost, kept = ApiKey.generate(), ApiKey.generate()
    for each in (kept, lost):
        table.create(each, "acme", [Scope.INFER])
    await callers.authenticate(show(lost))
    with store.database.write() as connection:
        connection.exec_driver_sql("DELETE FROM api_keys WHERE id = ?", (lost.id,))
    assert (await refused(callers, show(ApiKey.generate()))).reason == "KEY_INVALID"
    assert (await refused(callers, show(lost))).reason == "KEY_INVALID"
    assert (await callers.authenticate(show(kept))).key_id == kept.id
