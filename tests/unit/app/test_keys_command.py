"""``loramux keys`` as an operator runs it, beside a server or before there is one."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from loramux.cli import main
from loramux_server.core.callers.keys import ApiKey
from loramux_server.core.callers.principal import Scope
from loramux_server.store.database import Database
from loramux_server.store.keys import KeyState
from loramux_server.store.store import Store

Captured = pytest.CaptureFixture[str]


def run(state: Path, *words: str) -> int:
    try:
        return main(["keys", *words, "--state-dir", str(state)])
    except SystemExit as end:  # argparse refuses its arguments so
        return int(end.code or 0)


def created(state: Path, capsys: Captured, *words: str) -> dict[str, Any]:
    assert run(state, "create", "--tenant", "acme", "--json", *words) == 0
    found = json.loads(capsys.readouterr().out)
    assert isinstance(found, dict)
    return found


def test_a_key_is_created_beside_a_running_server_and_shown_once(store: Store, capsys: Captured) -> None:
    state = store.state.path
    words = ("--scope", "infer", "--scope", "train", "--adapter", "formal", "--expires", "30d", "--name", "chat bot")
    assert run(state, "create", "--tenant", "acme", *words) == 0
    said = capsys.readouterr()
    key = ApiKey.parse(said.out.strip())
    assert key is not None
    (record,) = store.keys.list()
    assert (record.id, record.tenant, record.secret_sha256) == (key.id, "acme", key.digest)
    assert (set(record.scopes), record.adapters) == ({Scope.INFER, Scope.TRAIN}, ("formal",))
    assert record.expires == pytest.approx(time.time() + 30 * 86_400, abs=60)
    assert (record.name, record.creator.startswith("command line of ")) == ("chat bot", True)
    assert "shown only now" in said.err
    assert "It is the first key" in said.err
    assert key.secret not in said.err
    assert run(state, "create", "--tenant", "acme") == 0
    assert "first key" not in capsys.readouterr().err
    assert run(state, "ls") == 0
    listed = capsys.readouterr().out
    assert key.id in listed
    assert key.secret not in listed + record.secret_sha256
    assert record.secret_sha256 not in listed


def test_keys_are_listed_with_what_became_of_them(store: Store, capsys: Captured) -> None:
    state = store.state.path
    one, two = (created(state, capsys) for _ in range(2))
    assert one["scopes"] == ["adapters:read", "infer"]
    assert one["adapters"] is None
    assert run(state, "revoke", one["id"], "--json") == 0
    assert [row["state"] for row in json.loads(capsys.readouterr().out)] == ["revoked"]
    assert run(state, "ls", "--json") == 0
    rows = {row["id"]: row for row in json.loads(capsys.readouterr().out)}
    assert {key_id: row["state"] for key_id, row in rows.items()} == {one["id"]: "revoked", two["id"]: "active"}
    assert "key" not in rows[one["id"]]
    assert not [row for row in rows.values() if "sha256" in json.dumps(row)]
    assert run(state, "ls", "--tenant", "other", "--json") == 0
    assert json.loads(capsys.readouterr().out) == []
    assert run(state, "revoke", two["id"]) == 0
    assert f"Key {two['id']} of tenant acme is revoked" in capsys.readouterr().out
    assert {key.state(time.time()) for key in store.keys.list()} == {KeyState.REVOKED}
    assert run(state, "revoke", "nothing") == 1
    assert "key 'nothing' not found" in capsys.readouterr().err


def test_what_was_done_is_in_the_audit_log_and_no_secret(store: Store, capsys: Captured) -> None:
    made = created(store.state.path, capsys)
    assert run(store.state.path, "revoke", made["id"]) == 0
    text = (store.state.path / "audit" / "audit.jsonl").read_text()
    entries = [json.loads(line) for line in text.splitlines()]
    assert [(e["action"], e["object"], e["tenant"]) for e in entries] == [
        ("keys create", made["id"], "acme"),
        ("keys revoke", made["id"], "acme"),
    ]
    assert made["key"].rpartition("_")[2] not in text


def test_a_key_can_be_created_before_the_first_start(tmp_path: Path, capsys: Captured) -> None:
    state = tmp_path / "new"
    assert run(state, "ls") == 1
    assert "has no database yet" in capsys.readouterr().err
    made = created(state, capsys)
    store = Store.open(state)
    assert [key.id for key in store.keys.list()] == [made["id"]]
    store.close()


def test_a_database_by_url_is_made_once(tmp_path: Path, capsys: Captured) -> None:
    url = f"sqlite:///{tmp_path / 'shared.db'}"
    made = created(tmp_path / "one", capsys, "--database-url", url)
    created(tmp_path / "one", capsys, "--database-url", url)
    assert run(tmp_path / "one", "ls", "--json", "--database-url", url) == 0
    assert made["id"] in capsys.readouterr().out


def test_a_lost_database_is_not_replaced(store: Store, tmp_path: Path, capsys: Captured) -> None:
    blob = store.state.blobs / "ab" / "cd"
    blob.mkdir(parents=True)
    (blob / "abcd").write_text("x")
    store.close()
    store.state.db.unlink()
    assert run(store.state.path, "create", "--tenant", "acme") == 1
    assert "is gone, but its files are still in" in capsys.readouterr().err
    assert not store.state.db.exists()


def test_a_database_of_another_version_is_left_alone(store: Store, capsys: Captured) -> None:
    with store.database.write() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '0009'")
    assert run(store.state.path, "create", "--tenant", "acme") == 1
    assert "has schema '0009'" in capsys.readouterr().err
    with store.database.read() as connection:
        assert connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar() == "0009"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--tenant", "Acme"), "--tenant: 'Acme' is not a valid name"),
        (("--tenant", "_server"), "--tenant: '_server' is not a valid name"),
        (("--tenant", "a", "--adapter", "x@2"), "--adapter: 'x@2' is not a valid name"),
        (("--tenant", "a", "--scope", "all"), "'all' is no scope; give one of infer, adapters:read"),
        (("--tenant", "a", "--expires", "soon"), "'soon' is no time; give 30d, 12h"),
        (("--tenant", "a", "--expires", "0d"), "'0d' is not in the future"),
        (("--tenant", "a", "--expires", "2020-01-01"), "'2020-01-01' is not in the future"),
        (("--tenant", "a", "--expires", "999999999w"), "'999999999w' is no time"),
        (("--tenant", "a", "--name", "x" * 201), "name: must be at most 200 printable characters"),
        ((), "the following arguments are required: --tenant"),
    ],
)
def test_what_makes_no_key_is_refused(store: Store, capsys: Captured, words: tuple[str, ...], told: str) -> None:
    assert run(store.state.path, "create", *words) == 2
    assert told in capsys.readouterr().err
    assert store.keys.list() == ()


def test_a_generated_key_is_stored_nowhere(store: Store, capsys: Captured) -> None:
    assert main(["keys", "generate"]) == 0
    key = ApiKey.parse(capsys.readouterr().out.strip())
    assert key is not None
    assert not key.guessable
    assert store.keys.list() == ()


def test_a_new_database_is_told_from_one_in_use(store: Store, tmp_path: Path) -> None:
    assert Database.is_new(f"sqlite:///{tmp_path / 'none.db'}")
    assert not Database.is_new(f"sqlite:///{store.state.db}")
