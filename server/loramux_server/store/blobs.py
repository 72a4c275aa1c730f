"""Content-addressed blobs: folders (an adapter) and single files (a dataset), durable before anyone names them.

A blob is written under ``tmp``, synced, renamed to its place and never changed. The database row that names it
comes after; what no row names is an orphan and is collected.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Condition, Lock

from ..core.errors import Code, Error
from ..core.failpoints import reach
from ..core.files import open_regular, storage_errors, sync_folder

_DIGEST = re.compile(r"[0-9a-f]{64}", re.ASCII)
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}", re.ASCII)
_CHUNK = 1 << 20
MAX_FILES = 64


@dataclass(frozen=True, slots=True)
class Blob:
    """A durable blob: its digest (64 hexadecimal digits) and the bytes it takes."""

    digest: str
    size_bytes: int


class BlobStore:
    """Blobs in a local folder. Thread-safe."""

    def __init__(self, root: Path, tmp: Path) -> None:
        self._root, self._tmp = root, tmp
        self._writers = 0
        self._collecting = False
        self._turn = Condition()
        self._settling = Lock()
        self._holding = Lock()
        self._held: Counter[str] = Counter()

    @contextmanager
    def publishing(self) -> Iterator[None]:
        """Around a put and the row that names the blob: nothing is collected meanwhile."""
        with self._turn:
            self._turn.wait_for(lambda: not self._collecting)
            self._writers += 1
        try:
            yield
        finally:
            with self._turn:
                self._writers -= 1
                self._turn.notify_all()

    @contextmanager
    def holding(self, digests: Collection[str]) -> Iterator[None]:
        """Around the use of blobs: they stay although no row names them any more. DATA_LOSS for one that is gone."""
        with self._holding:
            self._held.update(digests)
        try:
            for digest in digests:
                self.local_path(digest)
            yield
        finally:
            with self._holding:
                self._held.subtract(digests)
                self._held += Counter()  # drops what nobody holds

    def put_folder(self, source: Path) -> Blob:
        """Store the files of a flat folder; its digest is that of its files' names, sizes and digests.

        Durable on return; a folder with the same content is stored once. Raises INVALID_ARGUMENT for anything in
        it but regular files with plain names, RESOURCE_EXHAUSTED when the disk is full; then nothing is stored.
        """
        with storage_errors("cannot store the files"), self._staged() as staged:
            staged.mkdir()
            entries = [(name, *_copy(source / name, staged / name)) for name in _names_in(source)]
            reach("blob.written")
            sync_folder(staged)
            digest = _folder_digest(entries)
            self._settle(staged, self._place("folders", digest), digest)
        return Blob(digest, sum(size for _, size, _ in entries))

    def put_file(self, source: Path) -> Blob:
        """Store one file; its digest is the SHA-256 of its bytes. Otherwise as ``put_folder``."""
        with storage_errors("cannot store the file"), self._staged() as staged:
            size, digest = _copy(source, staged)
            reach("blob.written")
            self._settle(staged, self._place("files", digest), digest)
        return Blob(digest, size)

    def local_path(self, digest: str) -> Path:
        """Where a blob lies: a folder or a file. DATA_LOSS if it is gone."""
        if _DIGEST.fullmatch(digest):
            for kind in ("folders", "files"):
                place = self._place(kind, digest)
                if place.exists():
                    return place
        raise Error(Code.DATA_LOSS, f"the files of {digest[:64]!r} are missing from the store", reason="BLOB_MISSING")

    def holds(self, digest: str) -> bool:
        """Whether a blob is there."""
        return any(self._place(kind, digest).exists() for kind in ("folders", "files"))

    def verify(self, digest: str) -> None:
        """Read a blob whole; DATA_LOSS unless it is what its digest says."""
        if not self._is_sound(self.local_path(digest), digest):
            raise Error(Code.DATA_LOSS, f"the files of {digest!r} are damaged", reason="BLOB_DAMAGED")

    def size(self, digest: str) -> int:
        """Bytes of a blob's files."""
        place = self.local_path(digest)
        return sum(f.stat().st_size for f in place.iterdir()) if place.is_dir() else place.stat().st_size

    def digests(self) -> Iterator[str]:
        """Every blob in the store."""
        for place in self._root.glob("*/??/*"):
            if _DIGEST.fullmatch(place.name):
                yield place.name

    def collect_orphans(self, referenced: Callable[[], Collection[str]]) -> tuple[str, ...]:
        """Remove blobs that ``referenced()`` does not name; returns their digests.

        Waits for puts under way (``publishing``) and holds new ones back until it is done; ``referenced`` is asked
        in between, so it sees all their rows. What is in use (``holding``) stays until a later collection.
        """
        with self._turn:
            self._turn.wait_for(lambda: not self._writers and not self._collecting)
            self._collecting = True
        try:
            kept = frozenset(referenced())
            orphans = [d for d in self.digests() if d not in kept]
            with storage_errors("cannot remove unused files"):
                return tuple(digest for digest in orphans if self._remove_unused(digest))
        finally:
            with self._turn:
                self._collecting = False
                self._turn.notify_all()

    def _remove_unused(self, digest: str) -> bool:
        """Remove a blob unless somebody holds it; whoever comes after finds it gone."""
        with self._holding:
            if digest in self._held:
                return False
            self._remove(self.local_path(digest))
        return True

    def _place(self, kind: str, digest: str) -> Path:
        return self._root / kind / digest[:2] / digest

    @contextmanager
    def _staged(self) -> Iterator[Path]:
        """A path under ``tmp`` that is gone afterwards, unless it was moved away."""
        staged = self._tmp / f"put-{uuid.uuid4().hex}"
        try:
            yield staged
        finally:
            _delete(staged)

    def _settle(self, staged: Path, place: Path, digest: str) -> None:
        """Move what is staged to its place, unless a sound copy is there, and make the whole way to it durable."""
        with self._settling:
            if place.exists() and not self._is_sound(place, digest):
                self._remove(place)  # damaged on disk: the good copy takes its place
            if not place.exists():
                place.parent.mkdir(parents=True, exist_ok=True)
                reach("blob.before_rename")
                os.rename(staged, place)
                reach("blob.renamed")
        # Always all of them: a process that died here before may have left the entries unsynced.
        for folder in (place.parent, place.parent.parent, self._root):
            sync_folder(folder)
        reach("blob.durable")

    def _is_sound(self, place: Path, digest: str) -> bool:
        try:
            if place.is_dir():
                return _folder_digest([(name, *_copy(place / name, None)) for name in _names_in(place)]) == digest
            return _copy(place, None)[1] == digest
        except (OSError, Error):
            return False

    def _remove(self, place: Path) -> None:
        # Renamed first: a reader or a crash sees a whole blob or none.
        gone = self._tmp / f"gone-{uuid.uuid4().hex}"
        reach("collect.before_rename")
        os.rename(place, gone)
        sync_folder(place.parent)
        reach("collect.renamed")
        _delete(gone)


def _names_in(folder: Path) -> list[str]:
    names = sorted(entry.name for entry in os.scandir(folder))
    if not names or len(names) > MAX_FILES:
        raise Error(
            Code.INVALID_ARGUMENT,
            f"a folder of 1 to {MAX_FILES} files is needed, not {len(names)}",
            reason="BAD_FOLDER",
        )
    for name in names:
        if not _FILE_NAME.fullmatch(name):
            raise Error(Code.INVALID_ARGUMENT, f"{name[:80]!r} is not a plain file name", reason="BAD_FILE_NAME")
    return names


def _copy(source: Path, target: Path | None) -> tuple[int, str]:
    """Copy a regular file durably (or only read it) and return its size and SHA-256."""
    digest = hashlib.sha256()
    size = 0
    with os.fdopen(open_regular(source), "rb", buffering=0) as src:
        dst = None if target is None else target.open("xb", buffering=0)
        try:
            while chunk := src.read(_CHUNK):
                digest.update(chunk)
                size += len(chunk)
                view = memoryview(chunk)
                while dst is not None and view:
                    view = view[dst.write(view) :]
            if dst is not None:
                os.fsync(dst.fileno())
        finally:
            if dst is not None:
                dst.close()
    return size, digest.hexdigest()


def _folder_digest(entries: list[tuple[str, int, str]]) -> str:
    manifest = hashlib.sha256(b"loramux folder 1\n")
    for name, size, digest in sorted(entries):
        manifest.update(f"{digest} {size} {name}\n".encode())
    return manifest.hexdigest()


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
