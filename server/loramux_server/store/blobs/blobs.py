"""Content-addressed blobs: folders (an adapter) and single files (a dataset), durable before anyone names them.

The database row that names a blob comes after it; what no row names is an orphan and is collected. Blobs lie in a
local folder (``local_blobs.py``) or anywhere that fsspec reaches, with a local cache (``remote_blobs.py``).
"""

from __future__ import annotations

import hashlib
import os
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from io import BufferedReader
from pathlib import Path
from threading import Condition, Lock

from ...core.errors import Code, Error, is_damage
from ...host.files import open_regular, read_regular, storage_errors
from .files import Damage, FileEntry, damaged, find_damage, missing
from .reader import BlobReader

MARK = "loramux-store"
"""File at a place of blobs that names the store which they belong to: see :mod:`.blob_places`."""


@dataclass(frozen=True, slots=True)
class Blob:
    """A durable blob: its digest (64 hexadecimal digits) and the bytes it takes."""

    digest: str
    size_bytes: int


class BlobStore(ABC):
    """Blobs, wherever they are. Thread-safe; its calls block.

    ``grace_seconds``: how young an orphan must not be to be collected. Where several servers share the blobs, one
    may be about to write the row of what another takes for an orphan.
    """

    remote = False
    """Whether ``local_path`` may have to fetch a blob over a network. Otherwise it looks at a local folder."""

    def __init__(self, folder: Path, grace_seconds: float = 0.0) -> None:
        """``folder``: where the blobs are, or local copies of them."""
        self.reader = BlobReader(folder)
        """Reads folders that are in use. It can be made anew in another process, from the same folder."""
        self._grace = grace_seconds
        self._writers = 0
        self._collecting = False
        self._turn = Condition()
        self._holding = Lock()
        self._held: Counter[str] = Counter()
        # Named by content, so what was found once stays true.
        self.entries = lru_cache(maxsize=8192)(self._entries)
        """The files of a stored folder with their SHA-256, by its digest. DATA_LOSS if that cannot be told any more."""

    @abstractmethod
    def put_folder(self, source: Path) -> Blob:
        """Store the files of a flat folder; its digest is that of its files' names, sizes and digests.

        Durable on return; a folder with the same content is stored once. Raises INVALID_ARGUMENT for anything in
        it but regular files with plain names, RESOURCE_EXHAUSTED when the disk is full; then nothing is stored.
        """

    def put_here(self, source: Path) -> Blob:
        """``put_folder`` for what this machine alone needs, and nobody names later: a collection removes it."""
        return self.put_folder(source)

    @abstractmethod
    def put_file(self, source: Path) -> Blob:
        """Store one file; its digest is the SHA-256 of its bytes. Otherwise as ``put_folder``."""

    @abstractmethod
    def local_path(self, digest: str) -> Path:
        """A local folder or file with the blob's content, brought here if need be. DATA_LOSS if the blob is gone.

        It is there for at least a minute; around any longer use of it, ``holding``.
        """

    def read(self, digest: str, name: str, max_bytes: int) -> bytes:
        """One file of a folder, checked, without bringing the whole.

        DATA_LOSS if it is gone or not what was stored, INVALID_ARGUMENT if it is larger than ``max_bytes``.
        """
        entry = next((entry for entry in self.entries(digest) if entry.name == name), None)
        if entry is None:
            raise missing(digest)
        if entry.size_bytes > max_bytes:
            raise Error(Code.INVALID_ARGUMENT, f"{name} is larger than {max_bytes} bytes", reason="FILE_TOO_LARGE")
        data = self._read(digest, entry)
        if hashlib.sha256(data).hexdigest() != entry.digest:
            raise damaged(digest, f"{name} does not hold the bytes that were stored")
        return data

    def read_file(self, digest: str) -> bytes:
        """All bytes of a single file, checked. DATA_LOSS if it is gone or not what was stored."""
        while True:
            try:
                data = read_regular(self.local_path(digest))
            except FileNotFoundError:
                found = missing(digest)
            else:
                if hashlib.sha256(data).hexdigest() == digest:
                    return data
                found = damaged(digest)
            if not self.forget_copy(digest):
                raise found

    def open_file(self, digest: str) -> BufferedReader:
        """A single file to read from its beginning, all of its bytes checked; errors as ``read_file``."""
        with storage_errors("cannot read the file"):
            try:
                file = os.fdopen(open_regular(self.local_path(digest)), "rb")
            except FileNotFoundError:
                raise missing(digest) from None
            try:
                if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                    raise damaged(digest)
                file.seek(0)
            except BaseException:
                file.close()
                raise
            return file

    def forget_copy(self, digest: str) -> bool:
        """Drop a local copy that is damaged; whether there was one, so that asking again brings another."""
        return False

    @abstractmethod
    def holds(self, digest: str) -> bool:
        """Whether a blob is there."""

    @abstractmethod
    def damage(self, digest: str, only: Collection[str] | None = None) -> list[Damage]:
        """What is wrong with a blob where it is stored, all of it read. DATA_LOSS if all of it is gone.

        ``only`` names the files of a folder that are looked at.
        """

    def local_damage(self, digest: str) -> list[Damage]:
        """What is wrong with the folder at ``local_path``, all of it read. DATA_LOSS if it is gone."""
        return find_damage(self.local_path(digest), digest, self.entries(digest))

    def recheck(self, digest: str, only: Collection[str]) -> list[Damage]:
        """Look again at a folder in which a reader found damage; empty: its files are whole by now."""
        try:
            return self.damage(digest, only)
        except Error as error:
            if not is_damage(error):
                raise
            return [Damage("", error.message)]

    def verify(self, digest: str) -> None:
        """Read a blob whole, where it is stored; DATA_LOSS unless it is what its digest says."""
        if found := self.damage(digest):
            raise damaged(digest, "; ".join(map(str, found)))

    @abstractmethod
    def strays(self) -> list[str]:
        """What lies among the blobs and is none, as paths from where these are kept."""

    @abstractmethod
    def remove_stray(self, path: str) -> None:
        """Remove something that ``strays`` told of."""

    @abstractmethod
    def size(self, digest: str) -> int:
        """Bytes of a blob's files."""

    @abstractmethod
    def digests(self) -> Iterator[str]:
        """Every blob in the store, and what is left of one that was never finished."""

    @abstractmethod
    def _entries(self, digest: str) -> tuple[FileEntry, ...]: ...

    @abstractmethod
    def _read(self, digest: str, entry: FileEntry) -> bytes:
        """The bytes of a file of a folder as they are found. DATA_LOSS if it is gone."""

    @abstractmethod
    def _remove(self, digest: str) -> None:
        """Remove a blob: a reader or a crash sees a whole one or none."""

    @abstractmethod
    def _written(self, digest: str) -> float:
        """When a blob was put last, in seconds since the epoch."""

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

    def in_use(self, digest: str) -> bool:
        """Whether somebody holds a blob."""
        with self._holding:
            return digest in self._held

    def collect_orphans(self, referenced: Callable[[], Collection[str]]) -> tuple[str, ...]:
        """Remove blobs that ``referenced()`` does not name; returns their digests.

        Waits for puts under way (``publishing``) and holds new ones back until it is done; ``referenced`` is asked
        in between, so it sees all their rows. What is in use (``holding``) stays until a later collection.
        """
        with self._turn:
            self._turn.wait_for(lambda: not self._writers and not self._collecting)
            self._collecting = True
        try:
            # The blobs first: what another server puts after this is not among them.
            with storage_errors("cannot remove unused files"):
                found = list(self.digests())
                kept = frozenset(referenced())
                return tuple(d for d in found if d not in kept and self._is_old(d) and self._remove_unused(d))
        finally:
            with self._turn:
                self._collecting = False
                self._turn.notify_all()

    def _is_old(self, digest: str) -> bool:
        return not self._grace or time.time() - self._written(digest) >= self._grace

    def _remove_unused(self, digest: str) -> bool:
        """Remove a blob unless somebody holds it; whoever comes after finds it gone."""
        with self._holding:
            if digest in self._held:
                return False
            self._remove(digest)
        return True
