"""``loramux backup``, ``restore`` and ``doctor``: what is done to a state directory without a server, or beside one."""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from pydantic import SecretStr

from ..config import Settings, load
from ..config.help import make_parser
from ..core.errors import Code, Error, invalid_field
from ..store.blobs.blobs import BlobStore
from ..store.blobs.local import LocalBlobs
from ..store.blobs.places import open_blobs
from ..store.database import Database, sqlite_url
from ..store.maintenance import backup as backups
from ..store.maintenance.doctor import Finding, examine, repair
from ..store.state_dir import LOCK_FILE
from ..store.store import Store, blobs_of
from .audit import record_command


def backup_command(argv: Sequence[str]) -> int:
    """Copy the state of a server, which may be running, into a folder."""
    parser = _parser("backup", backup_command.__doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="Folder to make; must be new or empty.")
    arguments = parser.parse_args(argv)
    settings = state_settings(arguments)
    _only_sqlite(settings)
    url = _secret(settings.blobs_url)
    source = None if url is None else partial(_look_at, url)
    made = backups.backup(settings.state_dir, arguments.folder, _say(arguments.json), source)
    _tell(
        arguments.json, _described(made), f"backed up {len(made.blobs)} blobs, {made.size_bytes} bytes and the database"
    )
    return 0


def restore_command(argv: Sequence[str]) -> int:
    """Make a state directory from a backup, or only check the backup."""
    parser = _parser("restore", restore_command.__doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="Folder that loramux backup made.")
    parser.add_argument("--verify", action="store_true", help="Only check the backup; write nothing.")
    arguments = parser.parse_args(argv)
    if arguments.verify:
        manifest, found = backups.verify(arguments.folder)
        age = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(manifest.created))
        _report(arguments.json, found, f"the backup of {age} is sound: {len(manifest.blobs)} blobs and the database")
        return 1 if found else 0
    settings = state_settings(arguments)
    _only_sqlite(settings)
    url = _secret(settings.blobs_url)
    made = backups.restore(
        arguments.folder,
        settings.state_dir,
        _say(arguments.json),
        lambda state, identity: blobs_of(state, identity, url),
    )
    record_command(settings, "restore", str(arguments.folder), blobs=str(len(made.blobs)))
    _tell(
        arguments.json, _described(made), f"restored {len(made.blobs)} blobs and the database to {settings.state_dir}"
    )
    return 0


def doctor_command(argv: Sequence[str]) -> int:
    """Check every invariant of a state directory; nothing is changed without --repair."""
    parser = _parser("doctor", doctor_command.__doc__)
    parser.add_argument("--repair", action="store_true", help="Mend what can be mended; the server must be stopped.")
    arguments = parser.parse_args(argv)
    settings = state_settings(arguments)
    url, blobs_url = _secret(settings.database_url), _secret(settings.blobs_url)
    if not settings.state_dir.is_dir():
        raise Error(Code.FAILED_PRECONDITION, f"{settings.state_dir} is no state directory", reason="NO_STORE")
    if arguments.repair:
        return _repair(settings, url, blobs_url, arguments.json)
    found, running = check(settings.state_dir, url, blobs_url)
    beside = " (a server is running: files on their way were not looked at)" if running else ""
    _report(arguments.json, found, f"{settings.state_dir} is sound{beside}")
    return 1 if found else 0


def check(state_dir: Path, url: str | None = None, blobs_url: str | None = None) -> tuple[list[Finding], bool]:
    """What is wrong with a state directory, and whether a server is using it."""
    guard = _guard(state_dir)
    try:
        where = url or sqlite_url(state_dir / backups.DATABASE)
        if url is None and not (state_dir / backups.DATABASE).is_file():
            raise Error(Code.DATA_LOSS, f"{state_dir} has no database", reason="DATABASE_MISSING")
        # Not in /tmp, which holds little in a container. The next start of a server empties it, and waits for `guard`.
        beside = state_dir / "tmp"
        place = TemporaryDirectory(prefix="doctor-", dir=beside if beside.is_dir() else None)
        with closing(Database.inspect(where)) as database, place as scratch:
            blobs: BlobStore = LocalBlobs(state_dir / "blobs", state_dir / "tmp", look_only=True)
            if blobs_url is not None:
                blobs = _look_at(blobs_url, database.identity, Path(scratch))
            return examine(database, blobs, orphans=guard is not None), guard is None
    finally:
        if guard is not None:
            os.close(guard)


def _guard(state_dir: Path) -> int | None:
    """Hold the lock of a state directory without touching anything in it; None if a server holds it."""
    try:
        fd = os.open(state_dir / LOCK_FILE, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as exc:
        raise Error(
            Code.FAILED_PRECONDITION, f"{state_dir} is no state directory: {exc.strerror}", reason="NO_STORE"
        ) from exc
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    return fd


def _look_at(url: str, identity: str, scratch: Path) -> BlobStore:
    """Blobs that are not in the state directory, to be read only."""
    return open_blobs(
        url, identity, "", scratch, cache=scratch / "cache", cache_bytes=0, keep_seconds=0, look_only=True
    )


def _secret(value: SecretStr | None) -> str | None:
    return None if value is None else value.get_secret_value()


def _repair(settings: Settings, url: str | None, blobs_url: str | None, as_json: bool) -> int:
    state_dir = settings.state_dir
    with closing(Store.open(state_dir, url, blobs_url)) as store:
        found = examine(store.database, store.blobs)
        repair(store.database, store.blobs, found)
        left = examine(store.database, store.blobs)
    for finding in found:
        if finding not in left:
            record_command(settings, "doctor --repair", finding.subject, remedy=finding.remedy)
    if not as_json:
        for finding in found:
            print(f"{'left' if finding in left else finding.remedy}: {_line(finding)}")
    _report(as_json, left, f"{state_dir} is sound, {len(found)} problem(s) mended")
    return 1 if left else 0


def _parser(name: str, description: str | None) -> argparse.ArgumentParser:
    parser = make_parser(f"loramux {name}", description)
    add_state_options(parser)
    parser.add_argument(
        "--blobs-url", metavar="URL", help="Files of adapters and datasets, if not in the state directory."
    )
    return parser


def add_state_options(parser: argparse.ArgumentParser) -> None:
    """Where the state is, for commands on it."""
    parser.add_argument("--config", metavar="FILE", help="TOML file with settings.  [env var: LORAMUX_CONFIG]")
    parser.add_argument("--state-dir", metavar="DIR", help="State directory of the server.")
    parser.add_argument("--database-url", metavar="URL", help="SQL database, if it is not in the state directory.")
    parser.add_argument("--json", action="store_true", help="Print JSON instead of text.")


def open_database(settings: Settings, *, make: bool = False) -> Database:
    """The database of a server that runs or does not, to be written beside it; its schema is left as it is.

    ``make``: where there is none yet, it is made as a server's start does. Raises FAILED_PRECONDITION where there is
    none, or one of another version.
    """
    url = _secret(settings.database_url)
    path = settings.state_dir / backups.DATABASE
    missing = Database.is_new(url) if url is not None else not path.is_file()
    if make and missing:
        Store.open(settings.state_dir, url, _secret(settings.blobs_url)).close()
    elif url is None and missing:
        words = f"{settings.state_dir} has no database yet; start a server on it first, or give --state-dir"
        raise Error(Code.FAILED_PRECONDITION, words, reason="DATABASE_MISSING")
    Database.inspect(url or path).close()  # opening it would bring an older one up to date under its server
    return Database.open(url or sqlite_url(path))


def state_settings(arguments: argparse.Namespace) -> Settings:
    """The settings, with what the command line says of where the state is."""
    names = ("state_dir", "database_url", "blobs_url")
    given = {name: getattr(arguments, name, None) for name in names}
    return load({name: value for name, value in given.items() if value is not None}, arguments.config).settings


def _only_sqlite(settings: Settings) -> None:
    if settings.database_url is not None:
        raise invalid_field(
            "--database-url",
            "is a database server's: back it up and restore it with its own tools (pg_dump), then copy blobs/ (or what "
            "is at --blobs-url), in this order; loramux doctor checks that the two fit",
        )


def _say(as_json: bool) -> Callable[[str], object]:
    if as_json or not sys.stderr.isatty():
        return lambda text: None
    return lambda text: print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def _tell(as_json: bool, values: dict[str, object], text: str) -> None:
    if sys.stderr.isatty() and not as_json:
        print("\r\x1b[K", end="", file=sys.stderr)
    print(json.dumps(values, indent=2) if as_json else text)


def _described(manifest: backups.Manifest) -> dict[str, object]:
    return {"created": manifest.created, "blobs": len(manifest.blobs), "size_bytes": manifest.size_bytes}


def _report(as_json: bool, found: list[Finding], good: str) -> None:
    if as_json:
        rows = [{"check": f.check.value, "subject": f.subject, "detail": f.detail, "remedy": f.remedy} for f in found]
        print(json.dumps(rows, indent=2))
    elif not found:
        print(good)
    else:
        for finding in found:
            print(_line(finding) + (f" (--repair would {finding.remedy})" if finding.remedy else ""))
        print(f"{len(found)} problem(s)")


def _line(finding: Finding) -> str:
    return f"{finding.check.value} {finding.subject}: {finding.detail}"
