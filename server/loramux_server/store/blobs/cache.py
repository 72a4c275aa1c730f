"""Local copies of blobs that are stored elsewhere, within a number of bytes."""

from __future__ import annotations

import os
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from ...core.types import is_digest
from ...host.files import sync_folder
from .files import delete_path

KEEP_SECONDS = 60.0
"""What was asked for so recently stays: whoever asked may be about to read it."""


@dataclass(slots=True)
class _Copy:
    size_bytes: int
    used: float


class BlobCache:
    """A folder of whole, checked copies, the one unused longest removed first. Thread-safe.

    It holds more than ``max_bytes`` only while more is in use (``in_use``) or was asked for in the last
    ``keep_seconds``. What it holds survives a restart.
    """

    def __init__(
        self, folder: Path, max_bytes: int, in_use: Callable[[str], bool], keep_seconds: float = KEEP_SECONDS
    ) -> None:
        self._folder, self._max_bytes = folder, max_bytes
        self._in_use, self._keep_seconds = in_use, keep_seconds
        self._lock = Lock()
        self._copies: OrderedDict[str, _Copy] = OrderedDict()
        found = [path for path in folder.iterdir() if is_digest(path.name)]
        for path in sorted(found, key=lambda path: path.stat().st_mtime):
            self._copies[path.name] = _Copy(_size(path), 0.0)

    @property
    def size_bytes(self) -> int:
        """Bytes of all copies."""
        with self._lock:
            return sum(copy.size_bytes for copy in self._copies.values())

    def get(self, digest: str) -> Path | None:
        """The copy of a blob, if there is one; it counts as used now."""
        with self._lock:
            copy = self._copies.get(digest)
            if copy is None:
                return None
            copy.used = time.monotonic()
            self._copies.move_to_end(digest)
            return self._folder / digest

    def put(self, digest: str, staged: Path) -> Path:
        """Move a checked and synced copy in, in place of one that is there, and make room for it."""
        place, size = self._folder / digest, _size(staged)
        with self._lock:
            if digest in self._copies:
                delete_path(staged)  # named by content: the one that is there is the same
            else:
                os.rename(staged, place)
                sync_folder(self._folder)
            self._copies[digest] = _Copy(size, time.monotonic())
            self._copies.move_to_end(digest)
            self._make_room(digest)
        return place

    def drop(self, digest: str) -> None:
        """Remove a copy, unless it is in use."""
        with self._lock:
            if digest in self._copies and not self._in_use(digest):
                self._remove(digest)

    def discard(self, digest: str) -> bool:
        """Remove a copy that is damaged, in use or not: who has it open keeps what he has. Whether there was one."""
        with self._lock:
            if digest not in self._copies:
                return False
            self._remove(digest)
            return True

    def _make_room(self, newest: str) -> None:
        left = sum(copy.size_bytes for copy in self._copies.values()) - self._max_bytes
        asked = time.monotonic() - self._keep_seconds
        for digest, copy in list(self._copies.items()):
            if left <= 0:
                return
            if digest != newest and not (copy.used and copy.used >= asked) and not self._in_use(digest):
                left -= copy.size_bytes
                self._remove(digest)

    def _remove(self, digest: str) -> None:
        # Renamed first: a name in the folder is a whole copy.
        gone = self._folder / f"gone-{digest}"
        with suppress(FileNotFoundError):  # somebody else removed it
            os.rename(self._folder / digest, gone)
        delete_path(gone)
        del self._copies[digest]


def _size(path: Path) -> int:
    return sum(f.stat().st_size for f in path.iterdir()) if path.is_dir() else path.stat().st_size
