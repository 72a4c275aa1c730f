"""Opening a database: new, current, newer, foreign, damaged, busy."""

from __future__ import annotations

import sqlite3
from datetime import UTC, date, datetime
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from loramux_server.core.callers.usage import Dimension, UsageQuery, UsageRow
from loramux_server.core.errors import Code, Error
from loramux_server.core.jobs import Gate, JobRequest, TrainSpec
from loramux_server.core.notes import Note
from loramux_server.core.types import StackItem
from loramux_server.store import database as database_module
from loramux_server.store.adapters import rows as adapter_rows
from loramux_server.store.database import MIGRATIONS, Database, sqlite_url
from loramux_server.store.jobs.table import JobTable
from loramux_server.store.quotas import trained_today
from loramux_server.store.records import AdapterMeta, Composition
from loramux_server.store.schema import REVISION, adapters, aliases, jobs, metadata
from loramux_server.store.store import Store
from loramux_server.store.usage import UsageTable


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


def test_what_an_older_version_stored_is_read(tmp_path: Path) -> None:
    """The columns of jobs and versions that became documents, with every kind of value in them."""
    database = Database.open(sqlite_url(tmp_path / "db"))
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with database.write() as connection:
        for table in metadata.tables.values():
            connection.exec_driver_sql(f"DROP TABLE IF EXISTS {table.name}")
        connection.exec_driver_sql("DROP TABLE alembic_version")
        config.attributes["connection"] = connection
        command.upgrade(config, "0008")
        connection.exec_driver_sql(
            "INSERT INTO jobs (seq, id, owner, name, state, spec, dataset_id, validation_dataset_id, on_top_of,"
            " init_from, donors, gate, compare_prompt, metadata, idempotency_key, notes, attempts, fence, step,"
            " total_steps, metrics, adapter, error_code, error, gate_result, created, updated) VALUES"
            """ (1, 'job-1', 't', 'acme', 'succeeded', '{"rank": 4, "layers": [1, 2], "gone": 1}', 'ds-1', 'ds-2',"""
            """ '[[{"adapter": "pine@1", "weight": 1.3}], []]', 'acme@1', '{"acme@1": "d"}',"""
            """ 'min_accuracy:0.9:exact',"""
            """ 'Be brief.', '{"a": "b"}', 'k', '[{"code": "C", "text": "t", "count": 1, "line": 2}]', 1, 2, 3, 4,"""
            """ '{"loss": {"__float__": "nan"}}', 'acme@2', '', '', 'too few', 1.0, 2.0)"""
        )
        connection.exec_driver_sql("INSERT INTO adapters (id, owner, name, created) VALUES (7, 't', 'acme', 1.0)")
        connection.exec_driver_sql(
            "INSERT INTO adapter_versions (id, adapter_id, version, digest, state, pinned, rank, alpha, size_bytes,"
            " base_fingerprint, target_modules, layers, job_id, dataset_digest, parent, trained_on, asked_with,"
            " without_effect, composed, metrics, metadata, reason, created) VALUES"
            """ (1, 7, 1, 'd', 'ready', 0, 8, 16.0, 9, '', '["q_proj"]', 'null', '', '', '', '[]', NULL, NULL,"""
            """ '{"method": "svd", "stack": [{"adapter": "b@1", "weight": 2.0}], "error": 0.5, "rank": 2}', '{}',"""
            """ '{}', '', 1.0), (2, 7, 2, 'e', 'ready', 0, 4, 8.0, 9, 'f', '["q_proj"]', '[1]', 'job-1', 'dd',"""
            """ 'acme@1', '[[{"adapter": "pine@1", "weight": 1.3}]]', 'prompt', 1, NULL,"""
            """ '{"loss": {"__float__": "nan"}}', '{"a": "b"}', '', 1.0)"""
        )
        command.upgrade(config, REVISION)
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    found = JobTable(database).get("job-1", "t")
    assert found.request == JobRequest(
        "acme",
        "ds-1",
        "t",
        spec=TrainSpec(rank=4, layers=(1, 2)),
        validation_dataset_id="ds-2",
        on_top_of=((StackItem("pine@1", 1.3),), ()),
        init_from="acme@1",
        gate=Gate("min_accuracy", 0.9, "exact"),
        compare_prompt="Be brief.",
        metadata={"a": "b"},
        idempotency_key="k",
    )
    assert (found.donors, found.notes, found.fence) == ({"acme@1": "d"}, (Note("C", "t", 1, 2),), 2)
    with database.read() as connection:
        one, two = (adapter_rows.version_record(row) for row in adapter_rows.versions(connection, [7])[7])
    assert one.meta == AdapterMeta(
        8, 16.0, target_modules=("q_proj",), composed=Composition("svd", (StackItem("b@1", 2.0),), 0.5, rank=2)
    )
    loss = two.meta.metrics.pop("loss")
    assert loss != loss
    assert two.meta == AdapterMeta(
        4,
        8.0,
        "f",
        ("q_proj",),
        (1,),
        job_id="job-1",
        gate_result="too few",
        dataset_digest="dd",
        parent="acme@1",
        without_effect=True,
        asked_with="prompt",
        trained_on=((StackItem("pine@1", 1.3),),),
        metadata={"a": "b"},
    )
    database.close()


def test_tokens_that_were_trained_on_before_usage_are_usage(tmp_path: Path) -> None:
    """Of an adapter that is not known. What a tenant trained today counts against its quota still."""
    database = Database.open(sqlite_url(tmp_path / "db"))
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with database.write() as connection:
        for table in metadata.tables.values():
            connection.exec_driver_sql(f"DROP TABLE IF EXISTS {table.name}")
        connection.exec_driver_sql("DROP TABLE alembic_version")
        config.attributes["connection"] = connection
        command.upgrade(config, "0012")
        connection.exec_driver_sql("INSERT INTO training_use (tenant, day, tokens) VALUES ('ann', '2026-11-01', 70)")
        command.upgrade(config, REVISION)
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
        noon = datetime(2026, 11, 1, 12, tzinfo=UTC).timestamp()
        assert [trained_today(connection, tenant, noon) for tenant in ("ann", "bob")] == [70, 0]
    query = UsageQuery(since=date(2026, 11, 1), until=date(2026, 11, 2), group_by=tuple(Dimension))
    expected = UsageRow("2026-11-01", "ann", "_other", "train", trained_tokens=70)
    assert UsageTable(database, lambda: noon).read(query, 10) == ((expected,), "")
    database.close()


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
    error = refused(path)
    assert error.code is Code.DATA_LOSS
    assert "\n" not in error.message


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
