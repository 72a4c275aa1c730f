"""Blobs in a local folder: written under ``tmp``, synced, renamed to their place and never changed."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock

from ..core.errors import Error
from ..core.failpoints import reach
from ..core.files import read_regular, storage_errors, sync_folder
from .blob_files import copy_file, copy_folder, delete_path, folder_digest
from .blobs import Blob, BlobStore, damaged, is_digest, missing


class LocalBlobs(BlobStore):
    """Blobs under ``root``; ``tmp`` must be on the same file system."""

    def __init__(self, root: Path, tmp: Path, grace_seconds: float = 0.0) -> None:
        super().__init__(grace_seconds)
        self._root, self._tmp = root, tmp
        self._settling = Lock()

    def put_folder(self, source: Path) -> Blob:
        with storage_errors("cannot store the files"), self._staged() as staged:
            staged.mkdir()
            entries = copy_folder(source, staged)
            reach("blob.written")
            sync_folder(staged)
            digest = folder_digest(entries)
            self._settle(staged, self._place("folders", digest), digest)
        return Blob(digest, sum(entry.size_bytes for entry in entries))

    def put_file(self, source: Path) -> Blob:
        with storage_errors("cannot store the file"), self._staged() as staged:
            size, digest = copy_file(source, staged)
            reach("blob.written")
            self._settle(staged, self._place("files", digest), digest)
        return Blob(digest, size)

    def local_path(self, digest: str) -> Path:
        if is_digest(digest):
            for kind in ("folders", "files"):
                place = self._place(kind, digest)
                if place.exists():
                    return place
        raise missing(digest)

    def read(self, digest: str, name: str, max_bytes: int) -> bytes:
        try:
            return read_regular(self.local_path(digest) / name, max_bytes=max_bytes)
        except FileNotFoundError:
            raise missing(digest) from None

    def holds(self, digest: str) -> bool:
        return any(self._place(kind, digest).exists() for kind in ("folders", "files"))

    def verify(self, digest: str) -> None:
        if not self._is_sound(self.local_path(digest), digest):
            raise damaged(digest)

    def size(self, digest: str) -> int:
        place = self.local_path(digest)
        return sum(f.stat().st_size for f in place.iterdir()) if place.is_dir() else place.stat().st_size

    def digests(self) -> Iterator[str]:
        for kind in ("folders", "files"):
            for place in self._root.glob(f"{kind}/??/*"):
                if is_digest(place.name):
                    yield place.name

    def _written(self, digest: str) -> float:
        return self.local_path(digest).stat().st_mtime

    def _place(self, kind: str, digest: str) -> Path:
        return self._root / kind / digest[:2] / digest

    @contextmanager
    def _staged(self) -> Iterator[Path]:
        """A path under ``tmp`` that is gone afterwards, unless it was moved away."""
        staged = self._tmp / f"put-{uuid.uuid4().hex}"
        try:
            yield staged
        finally:
            delete_path(staged)

    def _settle(self, staged: Path, place: Path, digest: str) -> None:
        """Move what is staged to its place, unless a sound copy is there, and make the whole way to it durable."""
        with self._settling:
            if place.exists() and not self._is_sound(place, digest):
                self._discard(place)  # damaged on disk: the good copy takes its place
            if not place.exists():
                place.parent.mkdir(parents=True, exist_ok=True)
                reach("blob.before_rename")
                os.rename(staged, place)
                reach("blob.renamed")
            if self._grace:
                os.utime(place)  # another server's collection must not take it for an old orphan
        # Always all of them: a process that died here before may have left the entries unsynced.
        for folder in (place.parent, place.parent.parent, self._root):
            sync_folder(folder)
        reach("blob.durable")

    def _is_sound(self, place: Path, digest: str) -> bool:
        try:
            if place.is_dir():
                return folder_digest(copy_folder(place, None)) == digest
            return copy_file(place, None)[1] == digest
        except (OSError, Error):
            return False

    def _remove(self, digest: str) -> None:
        self._discard(self.local_path(digest))

    def _discard(self, place: Path) -> None:
        # Renamed first: a reader or a crash sees a whole blob or none.
        gone = self._tmp / f"gone-{uuid.uuid4().hex}"
        reach("collect.before_rename")
        os.rename(place, gone)
        sync_folder(place.parent)
        reach("collect.renamed")
        delete_path(gone)
