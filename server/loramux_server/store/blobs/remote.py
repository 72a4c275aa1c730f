"""Blobs in any file system of fsspec, such as an object store, and local copies of those that are in use.

Layout: ``files/ab/<digest>`` for a single file, ``folders/ab/<digest>/<name>`` for the files of a folder and, written
last, ``folders/ab/<digest>/.manifest``. Without its manifest a folder is not there, and the SHA-256 of the manifest is
the folder's digest, so that nothing but names is trusted.
"""

from __future__ import annotations

import hashlib
import logging
import os
import uuid
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock
from typing import Any

from ...core.errors import Code, Error, is_damage
from ...core.types import COMPUTED_WITH, is_digest
from ...host.failpoints import reach
from ...host.files import read_regular, storage_errors, sync_folder, write_durable
from .blobs import MARK, Blob, BlobStore
from .cache import KEEP_SECONDS, BlobCache
from .files import (
    MANIFEST,
    MAX_MANIFEST_BYTES,
    Damage,
    FileEntry,
    copy_file,
    copy_folder,
    damaged,
    delete_path,
    files_of,
    find_damage,
    folder_digest,
    listed,
    missing,
    read_manifest,
    write_manifest,
)
from .remote_files import RemoteFiles

log = logging.getLogger(__name__)

_STRIPES = 64


class RemoteBlobs(BlobStore):
    """Blobs under ``root`` of a file system of fsspec, with a cache of ``max_bytes`` in ``cache``, a local folder.

    What is put is in the cache too: the engine reads it next. With ``engine_here`` it reads the cache; otherwise it
    fetches copies of its own, and even what it alone needs is uploaded.
    """

    remote = True

    def __init__(
        self,
        fs: Any,
        root: str,
        cache: Path,
        max_bytes: int,
        *,
        grace_seconds: float = 0.0,
        keep_seconds: float = KEEP_SECONDS,
        engine_here: bool = True,
    ) -> None:
        super().__init__(cache, grace_seconds)
        self._files, self._folder = RemoteFiles(fs, root), cache
        for left in cache.iterdir():
            if not is_digest(left.name):  # half a download, or half a removal
                delete_path(left)
        self._cache = BlobCache(cache, max_bytes, self.in_use, keep_seconds)
        self._engine_here = engine_here
        self._fetching = [Lock() for _ in range(_STRIPES)]

    def put_folder(self, source: Path) -> Blob:
        return self._put_folder(source, self._upload_folder)

    def put_here(self, source: Path) -> Blob:
        return self._put_folder(source, (lambda *_: None) if self._engine_here else self._upload_folder)

    def _put_folder(self, source: Path, upload: Callable[[str, Path, list[FileEntry]], None]) -> Blob:
        with storage_errors("cannot store the files"), self._staged() as staged:
            staged.mkdir()
            entries = copy_folder(source, staged)
            write_durable(staged / MANIFEST, write_manifest(entries))
            sync_folder(staged)
            reach("blob.written")
            digest = folder_digest(entries)
            upload(digest, staged, entries)
            self._cache.put(digest, staged)
        return Blob(digest, sum(entry.size_bytes for entry in entries))

    def put_file(self, source: Path) -> Blob:
        with storage_errors("cannot store the file"), self._staged() as staged:
            size, digest = copy_file(source, staged)
            reach("blob.written")
            # Written anew where others use the place too: that makes it young, and takes the same time in any case.
            if self._grace or not self._is_sound(digest):
                self._files.upload(staged, _file_of(digest), size)
            reach("blob.durable")
            self._cache.put(digest, staged)
        return Blob(digest, size)

    def local_path(self, digest: str) -> Path:
        if not is_digest(digest):
            raise missing(digest)
        if (place := self._cache.get(digest)) is not None:
            return place
        # One download for all who ask meanwhile.
        with self._fetching[int(digest[:2], 16) % _STRIPES]:
            return self._cache.get(digest) or self._fetch(digest)

    def holds(self, digest: str) -> bool:
        return any(self._files.exists(path) for path in (f"{_place_of(digest)}/{MANIFEST}", _file_of(digest)))

    def damage(self, digest: str, only: Collection[str] | None = None) -> list[Damage]:
        entries = self._manifest(digest)
        if entries is None:
            found = self._damage_of(_file_of(digest), "", digest)
            if found is not None and found.missing:
                raise missing(digest)
            return [] if found is None else [found]
        wanted = [entry for entry in entries if only is None or entry.name in only]
        checked = (self._damage_of(f"{_place_of(digest)}/{entry.name}", entry.name, entry.digest) for entry in wanted)
        return [damage for damage in checked if damage is not None]

    def recheck(self, digest: str, only: Collection[str]) -> list[Damage]:
        place = self._cache.get(digest)
        if place is not None:
            entries = listed(place / MANIFEST, digest)
            if entries is None or find_damage(place, digest, entries, only):
                self._cache.discard(digest)
        try:
            self.local_path(digest)
        except Error as error:
            if not is_damage(error):
                raise
            return super().recheck(digest, only) or [Damage("", error.message)]
        return []

    def forget_copy(self, digest: str) -> bool:
        return self._cache.discard(digest)

    def size(self, digest: str) -> int:
        entries = self._manifest(digest)
        if entries is not None:
            return sum(entry.size_bytes for entry in entries)
        with _reading(digest):
            return self._files.size(_file_of(digest))

    def digests(self) -> Iterator[str]:
        found: dict[str, None] = {}
        for path in (*self._files.find("folders"), *self._files.find("files")):
            parts = path.split("/")
            if len(parts) >= 3 and is_digest(parts[2]):
                found[parts[2]] = None
        yield from found

    def strays(self) -> list[str]:
        found = []
        for name in self._files.find(""):
            kind, *parts = name.split("/")
            depth = {"files": 2, "folders": 3}.get(kind)
            placed = len(parts) == depth and is_digest(parts[1]) and parts[1][:2] == parts[0]
            if not placed and name != MARK:
                found.append(name)
        return sorted(found)

    def remove_stray(self, path: str) -> None:
        self._files.remove(path)

    def _entries(self, digest: str) -> tuple[FileEntry, ...]:
        # The copy first: it can be asked while the store is away.
        place = self._cache.get(digest)
        found = (place and (listed(place / MANIFEST, digest) or files_of(place, digest))) or self._manifest(digest)
        if found is None:
            raise missing(digest)
        return tuple(found)

    def _read(self, digest: str, entry: FileEntry) -> bytes:
        if (place := self._cache.get(digest)) is not None:
            with suppress(OSError, Error):
                data = read_regular(place / entry.name)
                if hashlib.sha256(data).hexdigest() == entry.digest:
                    return data
        with _reading(digest):
            return self._files.read(f"{_place_of(digest)}/{entry.name}")

    def _upload_folder(self, digest: str, staged: Path, entries: list[FileEntry]) -> None:
        place = _place_of(digest)
        if not self._is_sound(digest):
            for entry in entries:
                self._files.upload(staged / entry.name, f"{place}/{entry.name}", entry.size_bytes)
        reach("blob.uploaded")
        # Written anew in any case: that makes it young, and another server's collection passes over it.
        manifest = staged / MANIFEST
        self._files.upload(manifest, f"{place}/{MANIFEST}", manifest.stat().st_size)
        reach("blob.durable")

    def _fetch(self, digest: str) -> Path:
        """Bring a blob into the cache; DATA_LOSS unless it is what its digest says.

        A folder may come without files that nothing is computed with.
        """
        entries = self._manifest(digest)
        with storage_errors("cannot keep a local copy of the files"), self._staged() as staged:
            if entries is None:
                self._download(digest, _file_of(digest), staged, digest)
            else:
                staged.mkdir()
                for entry in entries:
                    self._download_part(digest, staged, entry)
                write_durable(staged / MANIFEST, write_manifest(entries))
                sync_folder(staged)
            return self._cache.put(digest, staged)

    def _download_part(self, digest: str, staged: Path, entry: FileEntry) -> None:
        try:
            self._download(digest, f"{_place_of(digest)}/{entry.name}", staged / entry.name, entry.digest)
        except Error as error:
            if entry.name in COMPUTED_WITH or not is_damage(error):
                raise
            log.warning("%s of %s is lost in the blob store: %s", entry.name, digest[:16], error.message)
            delete_path(staged / entry.name)

    def _download(self, digest: str, remote: str, target: Path, sha256: str) -> None:
        with _reading(digest):
            self._files.download(remote, target)
        with target.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                raise damaged(digest)
            os.fsync(file.fileno())

    def _manifest(self, digest: str) -> list[FileEntry] | None:
        """The files of a folder; None if the digest names no folder. DATA_LOSS if the manifest is damaged."""
        path = f"{_place_of(digest)}/{MANIFEST}"
        try:
            if self._files.size(path) > MAX_MANIFEST_BYTES:
                raise damaged(digest)
            data = self._files.read(path)
        except FileNotFoundError:
            return None
        if hashlib.sha256(data).hexdigest() != digest:
            raise damaged(digest)
        return read_manifest(data)

    def _is_sound(self, digest: str) -> bool:
        """Whether a blob is there, whole and what its digest says: all of it is read."""
        try:
            return not self.damage(digest)
        except Error as error:
            if error.code is Code.DATA_LOSS:
                return False
            raise

    def _damage_of(self, path: str, name: str, digest: str) -> Damage | None:
        try:
            sha256 = self._files.sha256(path)
        except FileNotFoundError:
            return Damage(name, "is missing", missing=True)
        return None if sha256 == digest else Damage(name, "does not hold the bytes that were stored")

    def _remove_unused(self, digest: str) -> bool:
        # Not under the lock of the holders, who would wait for the network. They read copies of their own; and who
        # has no copy by now cannot have been told of the blob since its last row went.
        if self.in_use(digest):
            return False
        self._remove(digest)
        return True

    def _remove(self, digest: str) -> None:
        reach("collect.before_rename")
        for path in (f"{_place_of(digest)}/{MANIFEST}", _file_of(digest)):
            self._files.remove(path)
        reach("collect.renamed")
        self._files.remove_folder(_place_of(digest))
        with storage_errors("cannot remove unused files"):
            self._cache.drop(digest)

    def _written(self, digest: str) -> float:
        paths = [*self._files.find(_place_of(digest)), *self._files.find(_file_of(digest))]
        return max((self._files.modified(path) for path in paths), default=0.0)

    @contextmanager
    def _staged(self) -> Iterator[Path]:
        """A path beside the copies that is gone afterwards, unless it was moved away."""
        staged = self._folder / f"part-{uuid.uuid4().hex}"
        try:
            yield staged
        finally:
            delete_path(staged)


def _place_of(digest: str) -> str:
    """The folder of a folder's files."""
    return f"folders/{digest[:2]}/{digest}"


def _file_of(digest: str) -> str:
    """The path of a single file."""
    return f"files/{digest[:2]}/{digest}"


@contextmanager
def _reading(digest: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise missing(digest) from None
