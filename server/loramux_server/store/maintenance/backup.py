"""A copy of a store in a folder, made while a server runs, and a store made from such a folder.

A backup is a database file, blobs, and a manifest that comes last: without it the folder is no backup. The database is
one consistent moment; every blob that it names is there, checked against its digest on the way in and on the way out.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...core.errors import Code, Error
from ...host.failpoints import reach
from ...host.files import storage_errors, sync_folder, write_durable
from ..blobs.blobs import BlobStore
from ..blobs.local import LocalBlobs
from ..database import Database, database_error
from ..schema import REVISION
from ..state_dir import StateDir
from .doctor import Finding, examine, given_up_digests, referenced_digests

MANIFEST = "manifest.json"
DATABASE = "loramux.db"
FORMAT = 1
SNAPSHOTS = 5
"""A version deleted while it was copied makes the snapshot old; so often a new one is taken."""

Progress = Callable[[str], object]


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a backup holds: the database's SHA-256, and the size of each blob by digest."""

    created: float
    schema: str
    database_sha256: str
    blobs: dict[str, int]

    @property
    def size_bytes(self) -> int:
        """Bytes of all blobs."""
        return sum(self.blobs.values())


def backup(
    state_dir: Path,
    folder: Path,
    progress: Progress = lambda text: None,
    source_of: Callable[[str, Path], BlobStore] | None = None,
) -> Manifest:
    """Copy the store of ``state_dir``, which a server may be using, into a new or empty ``folder``.

    ``source_of`` opens its blobs, given the store's identity and a folder for what is temporary; by default they are
    in the state directory.

    Raises FAILED_PRECONDITION when there is no store or the folder is not empty, DATA_LOSS when files that the
    database names are missing or damaged (run the doctor), RESOURCE_EXHAUSTED when the disk is full.
    """
    source = state_dir / DATABASE
    if not source.is_file():
        raise Error(Code.FAILED_PRECONDITION, f"{state_dir} holds no database of loramux", reason="NO_STORE")
    with storage_errors("cannot write the backup"):
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise Error(Code.FAILED_PRECONDITION, f"{folder} is not empty; give a new folder", reason="NOT_EMPTY")
        (folder / "blobs").mkdir()
        (folder / "tmp").mkdir()
        if source_of is None:
            blobs: BlobStore = LocalBlobs(state_dir / "blobs", folder / "tmp", look_only=True)
        else:
            with closing(Database.inspect(source)) as database:
                blobs = source_of(database.identity, folder / "tmp")
        copies = LocalBlobs(folder / "blobs", folder / "tmp")
        sizes: dict[str, int] = {}
        missing = ""
        for _ in range(SNAPSHOTS):
            progress("copying the database")
            _snapshot(source, folder / DATABASE)
            reach("backup.database")
            wanted, given_up = _referenced(folder / DATABASE)
            lost = missing if missing in wanted else ""
            missing = "" if lost else _copy_blobs(blobs, copies, wanted, sizes, progress, given_up)
            if lost or not missing:
                break
        if lost or missing:
            raise Error(
                Code.DATA_LOSS,
                f"the files of {(lost or missing)[:16]} are missing or damaged in {state_dir}: "
                f"{_damage(blobs, lost or missing)}; see what else is wrong with: loramux doctor",
                reason="BLOB_MISSING",
            )
        wanted &= sizes.keys()  # without what is given up
        copies.collect_orphans(lambda: wanted)  # what was deleted between two snapshots
        shutil.rmtree(folder / "tmp")
        manifest = Manifest(time.time(), REVISION, _sha256(folder / DATABASE), {d: sizes[d] for d in sorted(wanted)})
        reach("backup.before_manifest")
        _write_manifest(folder, manifest)
        reach("backup.done")
    return manifest


def verify(folder: Path) -> tuple[Manifest, list[Finding]]:
    """The manifest of a backup and all that is wrong with it; nothing is written.

    Raises INVALID_ARGUMENT for a folder that is no (complete) backup, DATA_LOSS for a damaged database.
    """
    manifest = read_manifest(folder)
    if manifest.schema > REVISION:
        raise Error(
            Code.FAILED_PRECONDITION,
            f"the backup has schema {manifest.schema!r}; this version of loramux knows up to {REVISION!r}",
            reason="NEWER_SCHEMA",
        )
    if _sha256(folder / DATABASE) != manifest.database_sha256:
        raise Error(Code.DATA_LOSS, f"{DATABASE} is not the file that was backed up", reason="BACKUP_DAMAGED")
    with closing(Database.inspect(folder / DATABASE)) as database:
        found = examine(database, LocalBlobs(folder / "blobs", folder / "blobs", look_only=True))
    return manifest, found


def restore(
    folder: Path,
    state_dir: Path,
    progress: Progress = lambda text: None,
    target_of: Callable[[StateDir, str], BlobStore] = lambda state, identity: LocalBlobs(state.blobs, state.tmp),
) -> Manifest:
    """Make the store of ``state_dir`` from a backup. Everything is checked before, the database is put last.

    ``target_of`` opens the place for its blobs, given the store's identity.

    Raises FAILED_PRECONDITION when the state directory has a database or is in use, DATA_LOSS for a backup that is
    not sound, and what ``verify`` raises. A restore that was interrupted is begun again by the same call.
    """
    progress("checking the backup")
    manifest, found = verify(folder)
    if found:
        first = found[0]
        raise Error(
            Code.DATA_LOSS,
            f"the backup is not sound ({len(found)} problem(s), the first: {first.check.value} {first.subject}: "
            f"{first.detail}); nothing was restored",
            reason="BACKUP_DAMAGED",
        )
    with closing(StateDir.open(state_dir)) as state, storage_errors("cannot restore"):
        if state.db.exists():
            raise Error(
                Code.FAILED_PRECONDITION,
                f"{state_dir} has a database already; give an empty state directory, or move that one away",
                reason="NOT_EMPTY",
            )
        with closing(Database.inspect(folder / DATABASE)) as database:
            target = target_of(state, database.identity)
        source = LocalBlobs(folder / "blobs", state.tmp, look_only=True)
        sizes: dict[str, int] = {}
        if missing := _copy_blobs(source, target, frozenset(manifest.blobs), sizes, progress):
            raise Error(Code.DATA_LOSS, f"the files of {missing} changed while they were read", reason="BACKUP_DAMAGED")
        staged = state.tmp / DATABASE
        with staged.open("xb") as out, (folder / DATABASE).open("rb") as data:
            shutil.copyfileobj(data, out, 1 << 20)
            out.flush()
            os.fsync(out.fileno())
        reach("restore.before_rename")
        os.rename(staged, state.db)
        sync_folder(state.path)
        reach("restore.done")
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a backup; INVALID_ARGUMENT if there is none or it cannot be read."""
    try:
        found: dict[str, Any] = json.loads((folder / MANIFEST).read_bytes())
        if found["format"] != FORMAT:
            raise Error(Code.FAILED_PRECONDITION, f"{folder} has backup format {found['format']!r}, not {FORMAT}")
        return Manifest(
            float(found["created"]),
            str(found["schema"]),
            str(found["database_sha256"]),
            {str(digest): int(size) for digest, size in found["blobs"].items()},
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise Error(
            Code.INVALID_ARGUMENT,
            f"{folder} is no complete backup: {MANIFEST} is missing or damaged",
            reason="NO_BACKUP",
        ) from None


def _snapshot(source: Path, target: Path) -> None:
    """One consistent moment of a database that others may be writing, as a single durable file."""
    target.unlink(missing_ok=True)
    try:
        with closing(sqlite3.connect(source, timeout=10)) as live, closing(sqlite3.connect(target)) as copy:
            live.execute("PRAGMA query_only=ON")
            live.backup(copy)
            copy.execute("PRAGMA journal_mode=DELETE")
    except sqlite3.DatabaseError as exc:
        raise database_error(str(exc)) from exc
    with target.open("rb") as file:
        os.fsync(file.fileno())


def _referenced(database: Path) -> tuple[frozenset[str], frozenset[str]]:
    """All blobs that rows name, and those of them that are known to be damaged and may be missing."""
    with closing(Database.inspect(database)) as copy:
        return referenced_digests(copy), given_up_digests(copy)


def _damage(blobs: BlobStore, digest: str) -> str:
    try:
        return "; ".join(map(str, blobs.damage(digest))) or "they changed while they were read"
    except Error as error:
        return error.message


def _copy_blobs(
    source: BlobStore,
    target: BlobStore,
    wanted: frozenset[str],
    sizes: dict[str, int],
    progress: Progress,
    given_up: frozenset[str] = frozenset(),
) -> str:
    """Copy what ``sizes`` does not have yet; gives the first digest whose files are not what it says.

    Of those that are ``given_up`` only what is whole is copied.
    """
    for i, digest in enumerate(sorted(wanted - sizes.keys()), start=1):
        progress(f"copying files, {i} of {len(wanted)}")
        try:
            place = source.local_path(digest)
            blob = target.put_folder(place) if place.is_dir() else target.put_file(place)
        except Error:
            if digest in given_up:
                continue
            if source.holds(digest):
                raise  # the target's failure
            return digest
        if blob.digest != digest:
            if digest in given_up:
                continue
            return digest
        sizes[digest] = blob.size_bytes
        reach("backup.blob")
    return ""


def _write_manifest(folder: Path, manifest: Manifest) -> None:
    found = {
        "format": FORMAT,
        "created": manifest.created,
        "schema": manifest.schema,
        "database_sha256": manifest.database_sha256,
        "blobs": manifest.blobs,
    }
    sync_folder(folder)
    staged = folder / f"{MANIFEST}.new"
    write_durable(staged, (json.dumps(found, indent=1) + "\n").encode())
    os.rename(staged, folder / MANIFEST)
    sync_folder(folder)


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise Error(Code.DATA_LOSS, f"{path.name} is missing from the backup", reason="BACKUP_DAMAGED") from None
