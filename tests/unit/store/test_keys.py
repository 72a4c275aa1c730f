"""API keys in the database: made once, taken back for good, never with their secret."""

from __future__ import annotations

import threading
from contextlib import closing
from pathlib import Path

import pytest

from loramux_server.core.callers.keys import ApiKey
from loramux_server.core.callers.principal import Scope
from loramux_server.core.errors import Code, Error
from loramux_server.store.database import Database
from loramux_server.store.keys import KeyState, KeyTable
from loramux_server.store.store import Store

BOTH = (Scope.TRAIN, Scope.INFER)


@pytest.fixture
def table(store: Store) -> KeyTable:
    return KeyTable(store.database, lambda: 100.0)


def test_a_key_is_stored_by_the_digest_of_its_secret_alone(table: KeyTable, tmp_path: Path) -> None:
    key = ApiKey.generate()
    made = table.create(key, "acme", BOTH, adapters=["b", "a"], expires=160.0, name="chat bot", creator="root")
    assert (made.id, made.tenant, made.scopes, made.adapters) == (
        key.id,
        "acme",
        (Scope.INFER, Scope.TRAIN),
        ("a", "b"),
    )
    assert (made.name, made.creator, made.created, made.expires, made.revoked) == (
        "chat bot",
        "root",
        100.0,
        160.0,
        None,
    )
    assert made.secret_sha256 == key.digest
    assert key.secret not in repr(made) + repr(key)
    assert not [path for path in (tmp_path / "state").glob("loramux.db*") if key.secret.encode() in path.read_bytes()]


def test_a_key_without_a_list_of_adapters_is_not_one_with_an_empty_list(table: KeyTable) -> None:
    assert table.create(ApiKey.generate(), "acme", BOTH).adapters is None
    assert table.create(ApiKey.generate(), "acme", BOTH, adapters=[]).adapters == ()
    assert [each.adapters for each in table.list()].count(None) == 1


def test_keys_expire_and_are_revoked_for_good(table: KeyTable) -> None:
    key = ApiKey.generate()
    made = table.create(key, "acme", BOTH, expires=160.0)
    assert [made.state(now) for now in (159.9, 160.0)] == [KeyState.ACTIVE, KeyState.EXPIRED]
    gone = table.revoke(key.id)
    assert (gone.state(0.0), gone.revoked) == (KeyState.REVOKED, 100.0)
    assert table.revoke(key.id) == gone
    assert table.create(key, "acme", BOTH) == gone  # made again, it stays revoked
    with pytest.raises(Error, match="'nothing' not found") as missing:
        table.revoke("nothing")
    assert (missing.value.code, missing.value.reason) == (Code.NOT_FOUND, "KEY_NOT_FOUND")


def test_two_secrets_never_share_an_id(table: KeyTable) -> None:
    table.create(ApiKey("one", "x" * 43), "acme", BOTH)
    with pytest.raises(Error) as refused:
        table.create(ApiKey("one", "y" * 43), "acme", BOTH)
    assert (refused.value.code, refused.value.reason) == (Code.ALREADY_EXISTS, "KEY_EXISTS")


@pytest.mark.parametrize("tenant", ["", "_server", "Acme", "a/b", "a" * 65, "a\n"])
def test_a_tenant_is_named_as_adapters_are(table: KeyTable, tenant: str) -> None:
    with pytest.raises(Error, match=r"tenant: .* is not a valid name"):
        table.create(ApiKey.generate(), tenant, BOTH)
    assert table.list() == ()


def test_other_bad_values_are_refused(table: KeyTable) -> None:
    with pytest.raises(Error, match="scope: is missing"):
        table.create(ApiKey.generate(), "acme", [])
    with pytest.raises(Error, match="adapter: 'A' is not a valid name"):
        table.create(ApiKey.generate(), "acme", BOTH, adapters=["A"])
    with pytest.raises(Error, match="name: must be at most 200 printable characters"):
        table.create(ApiKey.generate(), "acme", BOTH, name="\x1b[2J")


def test_who_follows_the_table_reads_changes_only(table: KeyTable) -> None:
    assert table.changed_since(0) == ((), 0)
    first, second = (table.create(ApiKey.generate(), "acme", BOTH) for _ in range(2))
    assert table.changed_since(0) == ((first, second), 2)
    gone = table.revoke(first.id)
    assert table.changed_since(2) == ((gone,), 3)
    table.revoke(first.id)
    assert table.changed_since(3) == ((), 3)
    assert [each.id for each in table.list("acme")] == sorted((first.id, second.id))
    assert table.list("other") == ()


def test_changes_made_at_once_have_numbers_of_their_own(store: Store) -> None:
    """Two processes write; a reader that follows meanwhile misses nothing."""
    with store.database.read() as connection:
        url = connection.engine.url
    with closing(Database.open(url)) as other:
        tables = KeyTable(store.database), KeyTable(other)
        threads = [threading.Thread(target=_create, args=(tables[i % 2], 10)) for i in range(4)]
        for thread in threads:
            thread.start()
        seen, revision = 0, 0
        while any(thread.is_alive() for thread in threads) or tables[0].changed_since(revision)[0]:
            changed, revision = tables[0].changed_since(revision)
            seen += len(changed)
        assert (seen, revision) == (40, 40)


def _create(table: KeyTable, count: int) -> None:
    for _ in range(count):
        table.create(ApiKey.generate(), "acme", BOTH)


@pytest.mark.parametrize(
    "text",
    [
        *("", "lmx_", "lmx_id_short", f"lmx_ID_{'x' * 43}", f"lmx_{'i' * 33}_{'x' * 43}", f"lmx_id_{'x' * 129}"),
        *(
            f"xlmx_id_{'x' * 43}",
            f"lmx_id_{'x' * 43}\n",
            f"lmx_id_{'ä' * 43}",
            f"lmx_id_{'x' * 43}_y",
            f"lmx__{'x' * 43}",
        ),
    ],
)
def test_what_has_not_the_form_of_a_key_is_none(text: str) -> None:
    assert ApiKey.parse(text) is None


def test_keys_are_drawn_at_random_and_read_back() -> None:
    keys = {ApiKey.generate() for _ in range(100)}
    assert len({key.id for key in keys} | {key.secret for key in keys}) == 200
    assert all(ApiKey.parse(key.text) == key and not key.guessable for key in keys)
    assert ApiKey("a", "ab" * 30).guessable
