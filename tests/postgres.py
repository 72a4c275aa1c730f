"""A PostgreSQL server of the tests' own, where one is installed."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa


def _binaries() -> Path | None:
    """Where initdb and pg_ctl are: on the path, or where Debian puts them."""
    found = shutil.which("initdb")
    if found:
        return Path(os.path.realpath(found)).parent
    return max(Path("/usr/lib/postgresql").glob("*/bin"), default=None)


BIN = _binaries()
"""The folder of the server's programs; None: it is not installed."""
MISSING = "no PostgreSQL server is installed (apt install postgresql)"


class Postgres:
    """A server of our own, reached through a socket in its folder only."""

    def __init__(self, root: Path, who: dict[str, str]) -> None:
        self.root, self._who = root, who
        self.url = f"postgresql+psycopg://loramux@/postgres?host={root}"

    def run(self, *words: object) -> None:
        done = subprocess.run([str(w) for w in words], capture_output=True, text=True, cwd=self.root, **self._who)  # type: ignore[call-overload]
        assert done.returncode == 0, done.stderr + done.stdout

    def start(self) -> None:
        options = f"-c listen_addresses='' -c unix_socket_directories={self.root} -c fsync=off"
        log = self.root / "log"
        self.run(_bin("pg_ctl"), "-D", self.root / "data", "-l", log, "-w", "-o", options, "start")

    def stop(self) -> None:
        """As a crash does it: connections end without a word."""
        self.run(_bin("pg_ctl"), "-D", self.root / "data", "-m", "immediate", "stop")

    def make_database(self, name: str) -> str:
        """A new database; gives its URL."""
        engine = sa.create_engine(self.url, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.exec_driver_sql(f"CREATE DATABASE {name}")
        engine.dispose()
        return self.url.replace("/postgres?", f"/{name}?")


@contextmanager
def open_postgres(root: Path) -> Iterator[Postgres]:
    """A running server with its data in ``root``, or, as root, in a folder of the user who runs it."""
    who: dict[str, str] = {}
    if os.geteuid() == 0:  # it refuses to run as root
        users = {entry.pw_name for entry in pwd.getpwall()}
        who = {"user": "postgres" if "postgres" in users else "nobody"}
        root = Path("/tmp") / f"loramux-pg-{os.getpid()}"
        root.mkdir()
        shutil.chown(root, who["user"])

    server = Postgres(root, who)
    words = ("-U", "loramux", "--auth=trust", "--no-sync", "--encoding=UTF8")
    server.run(_bin("initdb"), "-D", root / "data", *words)
    server.start()
    try:
        yield server
    finally:
        server.stop()
        shutil.rmtree(root, ignore_errors=True)


def _bin(name: str) -> Path:
    assert BIN is not None
    return BIN / name
