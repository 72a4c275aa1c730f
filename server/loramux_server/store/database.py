"""The database: opened, checked and brought to the code's schema, with one way to read and one to write."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from threading import Lock
from typing import Any, Self, TypeVar

import msgspec
import sqlalchemy as sa
from sqlalchemy import Connection, Engine, Row, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DBAPIError

from ..core.errors import Code, Error, invalid_field
from ..host.failpoints import reach
from .schema import REVISION
from .schema import identity as store_identity

T = TypeVar("T")
_TURN = sa.text("SELECT pg_advisory_xact_lock(7236837)")
"""One writer at a time, over all servers of one database, as in SQLite: numbers follow each other without a gap."""
MIGRATIONS = Path(__file__).parent / "migrations"
BUSY_TIMEOUT_MS = 10_000
CONNECT_SECONDS = 5
"""How long a server that does not answer may keep whoever connects to it."""
SILENCE_SECONDS = 15
"""How long it may then leave sent bytes unacknowledged, as behind a firewall that swallows them."""


class Database:
    """A pool of connections to one database. Thread-safe. Failures of the database are ``Error``."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._server = engine.dialect.name != "sqlite"
        self._writer = engine.execution_options(loramux_write=True)
        if self._server:
            # Writers take turns (below) and must see what the one before them wrote.
            self._writer = engine.execution_options(isolation_level="READ COMMITTED")
        # SQLite has one writer; waiting here is fair and wakes at once, its busy handler polls.
        self._write_lock: AbstractContextManager[Any] = Lock() if engine.dialect.name == "sqlite" else nullcontext()

    @classmethod
    def open(cls, url: str | URL) -> Self:
        """Open a database by URL, check it and migrate it to this code's schema.

        Raises FAILED_PRECONDITION for a newer schema or a foreign database, DATA_LOSS for a damaged one (which is
        left as it is), UNAVAILABLE when it cannot be reached.
        """
        engine = _engine(_parsed(url))
        database = cls(engine)
        try:
            with database.write() as connection:
                _check_sound(connection)
                _migrate(connection)
        except BaseException:
            engine.dispose()
            raise
        return database

    @classmethod
    def inspect(cls, where: Path | str | URL) -> Self:
        """Open a database (a file of SQLite, or a URL) to look at it: nothing in it is ever changed.

        Raises FAILED_PRECONDITION when it has another schema than this code's, DATA_LOSS when it cannot be read.
        """
        url = sqlite_url(where) if isinstance(where, Path) else _parsed(where)
        database = cls(_engine(url, read_only=True))
        try:
            with database.read() as connection:
                _check_current(connection)
        except BaseException:
            database.close()
            raise
        return database

    @classmethod
    def is_new(cls, url: str | URL) -> bool:
        """Whether a database has no tables yet. Raises UNAVAILABLE when it cannot be reached."""
        database = cls(_engine(_parsed(url), read_only=True))
        try:
            with database.read() as connection:
                return not sa.inspect(connection).get_table_names()
        finally:
            database.close()

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A connection in a read transaction: one consistent view."""
        with _database_errors(), self._engine.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def write(self, name: str = "") -> Iterator[Connection]:
        """A connection in a write transaction, durable when the block ends, undone if it raises.

        ``name`` makes the failpoints ``NAME.before_commit`` and ``NAME.committed``.
        """
        with _database_errors(), self._write_lock:
            with self._writer.connect() as connection, connection.begin():
                if self._server:
                    connection.execute(_TURN)
                yield connection
                if name:
                    reach(f"{name}.before_commit")
            if name:
                reach(f"{name}.committed")

    @property
    def identity(self) -> str:
        """What the store is called, for good; a copy of the database has it too."""
        with self.read() as connection:
            return str(connection.scalar(sa.select(store_identity.c.id)))

    def close(self) -> None:
        """Close all connections; SQLite folds its log into the file."""
        self._engine.dispose()


def sqlite_url(path: Path) -> URL:
    """The URL of a database file."""
    return URL.create("sqlite", database=os.fspath(path))


def _parsed(url: str | URL) -> URL:
    """A URL of a database that this code works with; INVALID_ARGUMENT for any other."""
    try:
        found = make_url(url)
    except sa.exc.ArgumentError:
        raise invalid_field("--database-url", "is no URL of a database; write postgresql+psycopg://...") from None
    if found.drivername not in ("sqlite", "postgresql", "postgresql+psycopg"):
        raise invalid_field("--database-url", f"is for {found.drivername!r}; use sqlite or postgresql+psycopg")
    return found.set(drivername="postgresql+psycopg") if found.drivername == "postgresql" else found


def _engine(url: URL, *, read_only: bool = False) -> Engine:
    if url.get_backend_name() != "sqlite":
        try:
            return sa.create_engine(
                url,
                pool_pre_ping=True,
                pool_timeout=CONNECT_SECONDS,
                isolation_level="REPEATABLE READ",
                connect_args={name: value for name, value in _patience().items() if name not in url.query},
            )
        except ModuleNotFoundError as exc:
            raise invalid_field(
                "--database-url", f"needs the package {exc.name}; install it with: pip install 'psycopg[binary]'"
            ) from None
    engine = sa.create_engine(url, connect_args={"timeout": BUSY_TIMEOUT_MS / 1000, "check_same_thread": False})

    @event.listens_for(engine, "connect")
    def _connected(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # the driver leaves BEGIN to us, so DDL is transactional too
        if read_only:
            connection.execute("PRAGMA query_only=ON")
            return
        for pragma in ("foreign_keys=ON", "journal_mode=WAL", "synchronous=FULL", f"busy_timeout={BUSY_TIMEOUT_MS}"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begun(connection: Connection) -> None:
        # A writer takes its lock at once: one that upgrades later can fail after it has read.
        write = connection.get_execution_options().get("loramux_write", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")

    return engine


def _patience() -> dict[str, int]:
    """Parameters of libpq: nobody is held for long by a server that is gone without a word."""
    return {
        "connect_timeout": CONNECT_SECONDS,
        "tcp_user_timeout": SILENCE_SECONDS * 1000,
        "keepalives_idle": SILENCE_SECONDS,
        "keepalives_interval": CONNECT_SECONDS,
        "keepalives_count": 2,
    }


def _check_sound(connection: Connection) -> None:
    if connection.dialect.name != "sqlite":
        return
    found = [row[0] for row in connection.exec_driver_sql("PRAGMA quick_check(3)")]
    if found != ["ok"]:
        # One problem may be told in several lines, and a refusal is one.
        raise _damaged("; ".join(line for text in found for line in text.splitlines()))


def _check_current(connection: Connection) -> None:
    """Raise FAILED_PRECONDITION unless the schema is this code's."""
    found = None
    if "alembic_version" in sa.inspect(connection).get_table_names():
        found = connection.scalar(sa.text("SELECT version_num FROM alembic_version"))
    if found != REVISION:
        raise Error(
            Code.FAILED_PRECONDITION,
            f"the database has schema {found!r}, this version of loramux works with {REVISION!r}; "
            "an older one is brought up to date when a server starts on it",
            reason="OTHER_SCHEMA",
        )


def _migrate(connection: Connection) -> None:
    tables = set(sa.inspect(connection).get_table_names())
    current = None
    if "alembic_version" in tables:
        current = connection.scalar(sa.text("SELECT version_num FROM alembic_version"))
    elif tables:
        raise Error(
            Code.FAILED_PRECONDITION,
            f"the database belongs to another program (it has a table {min(tables)!r}); give another one",
            reason="FOREIGN_DATABASE",
        )
    if current == REVISION:
        return
    # Imported late: most starts have nothing to migrate.
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", os.fspath(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if current is not None and current not in known:
        raise Error(
            Code.FAILED_PRECONDITION,
            f"the database has schema {current!r}, which this version of loramux does not know (it knows up to "
            f"{REVISION!r}): it was made by a newer loramux; install that, or restore a backup of the older state",
            reason="NEWER_SCHEMA",
        )
    command.upgrade(config, REVISION)


@contextmanager
def _database_errors() -> Iterator[None]:
    """Turn what the driver reports into an ``Error``; a broken constraint is left for the caller to judge."""
    try:
        yield
    except sa.exc.IntegrityError:
        raise
    except sa.exc.TimeoutError as exc:
        raise database_error("no connection is free: it answers slowly or not at all") from exc
    except DBAPIError as exc:
        raise database_error(str(exc.orig)) from exc


def read_row(row: Row[Any], kind: type[T]) -> T:
    """A row as a frozen value with fields of the columns' names.

    Columns and keys of documents that ``kind`` does not know are left out; what is NULL or missing takes its default.
    Raises DATA_LOSS for what no version of this code has written.
    """
    return read_values({str(name): value for name, value in row._mapping.items() if value is not None}, kind)


def read_values(values: dict[str, Any], kind: type[T]) -> T:
    """As :func:`read_row`, from values by name."""
    try:
        return msgspec.convert(values, kind)
    except msgspec.ValidationError as exc:
        raise _damaged(f"a stored {kind.__name__} cannot be read: {exc}") from exc


def database_error(text: str) -> Error:
    """The ``Error`` for what a database's driver says."""
    text = " ".join(text.split())
    if "locked" in text or "busy" in text:
        return Error(Code.UNAVAILABLE, "the database is busy; try again", reason="DATABASE_BUSY", retry_after=1.0)
    if "malformed" in text or "not a database" in text or "corrupt" in text:
        return _damaged(text)
    if "full" in text:
        return Error(
            Code.RESOURCE_EXHAUSTED, "the database cannot grow: free space on the server's disk", reason="STORAGE_FULL"
        )
    if "readonly" in text or "read-only" in text:
        return Error(Code.FAILED_PRECONDITION, "the database cannot be written", reason="STORAGE_READ_ONLY")
    return Error(Code.UNAVAILABLE, f"the database cannot be used: {text[:200]}", reason="DATABASE_UNAVAILABLE")


def _damaged(detail: str) -> Error:
    return Error(
        Code.DATA_LOSS,
        f"the database is damaged ({detail[:200]}); it was left as it is: restore a backup (loramux restore), "
        "or move the state directory away to begin anew",
        reason="DATABASE_DAMAGED",
    )
