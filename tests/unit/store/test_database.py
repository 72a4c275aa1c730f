"""Opening a database: new, current, newer, foreign, damaged, busy."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from loramux_server.core.errors import Code, Error
from loramux_server.store import database as database_module
from loramux_server.store.database import MIGRATIONS, Database, sqlite_url
from loramux_server.store.schema import REVISION, adapters, aliases, jobs, metadata
from loramux_server.store.store import Store


def refused(path: Path) -> Error:
    before = path.read_bytes()
    with pytest.raises(Error) as caught:
        Database.open(sqlite_url(path))
    assert path.read_bytes() == before  # left as it was
    return caught.value


def test_migrations_make_the_tables_that_the_code_uses(tmp_path: Path) -> None:
    database = Database.open(sqlite_url(tmp_path / "db"))
    with database.read() as connection:
        differences = compare_metadata(MigrationContext.configure(connection), metadata)
    assert differences == []
    database.close()


def test_the_newest_migration_is_the_revision_of_the_code() -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    assert ScriptDirectory.from_config(config).get_current_head() == REVISION


def test_durability_settings(tmp_path: Path) -> None:
    database = Database.open(sqlite_url(tmp_path / "db"))
    with database.read() as connection:
        found = {
            p: connection.exec_driver_sql(f"PRAGMA {p}").scalar()
            for p in ("journal_mode", "synchronous", "foreign_keys")
        }
    assert found == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}
    database.close()


def test_foreign_keys_hold(tmp_path: Path) -> None:
    database = Database.open(sqlite_url(tmp_path / "db"))
    with pytest.raises(sa.exc.IntegrityError), database.write() as connection:
        connection.execute(aliases.insert().values(adapter_id=7, alias="latest", version=1))
    database.close()


def test_a_failed_block_leaves_nothing(tmp_path: Path) -> None:
    database = Database.open(sqlite_url(tmp_path / "db"))

    def fail() -> None:
        with database.write() as connection:
            connection.execute(adapters.insert().values(owner="", name="a", created=0.0))
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    with database.read() as connection:
        assert connection.execute(sa.select(adapters)).all() == []
    database.close()


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "db"
    Database.open(sqlite_url(path)).close()
    with sqlite3.connect(path) as raw:
        raw.execute("UPDATE alembic_version SET version_num = '9999'")
    raw.close()
    error = refused(path)
    assert (error.code, error.reason) == (Code.FAILED_PRECONDITION, "NEWER_SCHEMA")
    assert "newer loramux" in error.message


def test_the_database_of_another_program_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "db"
    with sqlite3.connect(path) as raw:
        raw.execute("PRAGMA journal_mode=WAL")
        raw.execute("CREATE TABLE songs (id)")
    raw.close()
    assert refused(path).reason == "FOREIGN_DATABASE"


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    path = tmp_path / "db"
    path.write_bytes(b"this is no database at all, but a text" * 100)
    assert refused(path).code is Code.DATA_LOSS


def filled(path: Path) -> None:
    database = Database.open(sqlite_url(path))
    with database.write() as connection:
        connection.execute(adapters.insert(), [{"owner": "t", "name": f"n{i}", "created": 0.0} for i in range(2000)])
    database.close()


def test_a_truncated_database(tmp_path: Path) -> None:
    path = tmp_path / "db"
    filled(path)
    path.write_bytes(path.read_bytes()[: 4096 * 20])
    assert refused(path).code is Code.DATA_LOSS


def test_a_damaged_page(tmp_path: Path) -> None:
    path = tmp_path / "db"
    filled(path)
    data = bytearray(path.read_bytes())
    data[-4096:] = b"\xff" * 4096
    path.write_bytes(data)
    assert refused(path).code is Code.DATA_LOSS


def test_a_database_that_another_process_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database_module, "BUSY_TIMEOUT_MS", 20)
    path = tmp_path / "db"
    database = Database.open(sqlite_url(path))
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(Error) as caught, database.write():
        pass
    assert (caught.value.code, caught.value.reason) == (Code.UNAVAILABLE, "DATABASE_BUSY")
    assert caught.value.retry_after
    with database.read() as connection:  # readers go on
        assert connection.execute(sa.select(adapters)).all() == []
    other.execute("ROLLBACK")
    other.close()
    with database.write():
        pass
    database.close()


def test_a_full_disk(tmp_path: Path) -> None:
    database = Database.open(sqlite_url(tmp_path / "db"))

    def overfill() -> None:
        with database.write() as connection:
            connection.exec_driver_sql("PRAGMA max_page_count = 30")
            rows = [{"owner": "t", "name": f"n{i}", "created": 0.0} for i in range(9000)]
            connection.execute(adapters.insert(), rows)

    with pytest.raises(Error) as caught:
        overfill()
    assert caught.value.code is Code.RESOURCE_EXHAUSTED
    database.close()


def test_blobs_without_their_database_are_not_orphaned(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "state")
    source = tmp_path / "data"
    source.write_text("{}")
    store.datasets.put(source, "t")
    store.close()
    (tmp_path / "state" / "loramux.db").unlink()
    with pytest.raises(Error) as caught:
        Store.open(tmp_path / "state")
    assert (caught.value.code, caught.value.reason) == (Code.FAILED_PRECONDITION, "DATABASE_MISSING")
    assert not (tmp_path / "state" / "loramux.db").exists()


def test_a_refused_store_gives_its_lock_back(tmp_path: Path) -> None:
    Store.open(tmp_path).close()
    good = (tmp_path / "loramux.db").read_bytes()
    (tmp_path / "loramux.db").write_bytes(b"x" * 5000)
    with pytest.raises(Error):
        Store.open(tmp_path)
    (tmp_path / "loramux.db").write_bytes(good)
    Store.open(tmp_path).close()


@pytest.mark.parametrize("url", ["nonsense", "mysql://x/y", "postgresql+asyncpg://x/y", "://"])
def test_urls_of_no_database_that_we_know(url: str) -> None:
    with pytest.raises(Error) as caught:
        Database.open(url)
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert [v.field for v in caught.value.violations] == ["--database-url"]


def test_figures_that_json_does_not_have(tmp_path: Path) -> None:
    figures = {
        "a": float("nan"),
        "b": float("inf"),
        "c": -float("inf"),
        "d": 0.5,
        "e": 1,
        "deep": {"x": [float("inf")]},
    }
    database = Database.open(sqlite_url(tmp_path / "db"))
    with database.write() as connection:
        connection.execute(jobs.insert().values(**job_row(figures)))
    with database.read() as connection:
        found = connection.execute(sa.select(jobs.c.metrics)).scalar_one()
        raw = connection.exec_driver_sql("SELECT metrics FROM jobs").scalar_one()
    assert str(found) == str(figures)
    assert "NaN" not in raw  # any database's JSON takes it
    assert "Infinity" not in raw
    database.close()


def job_row(figures: dict[str, object]) -> dict[str, object]:
    texts = {c.name: "" for c in jobs.c if isinstance(c.type, sa.String) and not c.nullable}
    numbers = {c.name: 0 for c in jobs.c if isinstance(c.type, sa.Integer | sa.Float) and not c.nullable}
    values = {c.name: {} for c in jobs.c if isinstance(c.type, sa.JSON)}
    return {**texts, **numbers, **values, "metrics": figures}
