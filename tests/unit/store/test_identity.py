"""The store's name: drawn once, kept by the database and by every copy of it."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from loramux_server.store.database import Database, sqlite_url
from loramux_server.store.maintenance.backup import backup, restore
from loramux_server.store.store import Store


def test_the_name_stays_over_restarts_and_restores(tmp_path: Path) -> None:
    with closing(Store.open(tmp_path / "state")) as store:
        name = store.database.identity
    with closing(Store.open(tmp_path / "state")) as store:
        assert store.database.identity == name
        backup(tmp_path / "state", tmp_path / "backup")
    restore(tmp_path / "backup", tmp_path / "new")
    with closing(Store.open(tmp_path / "new")) as store:
        assert store.database.identity == name
    with closing(Database.open(sqlite_url(tmp_path / "other"))) as other:
        assert len(other.identity) == 32
        assert other.identity != name
