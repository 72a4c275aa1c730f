"""Blobs in a local folder: written under ``tmp``, synced, renamed to their place and never changed.

Layout: ``files/ab/<digest>``, ``folders/ab/<digest>/<name>``, and ``manifests/ab/<digest>`` with what each file of that
folder must be. A folder may be without its manifest (stored by an older version, or the process died in between): then
it is checked as a whole, and gets one.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock

from ...core.types import is_digest
from ...host.failpoints import reach
from ...host.files import read_regular, storage_errors, sync_folder, write_durable
from .blobs import MARK, Blob, BlobStore
from .files import (
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
    write_manifest,
)

KINDS = ("folders", "files")
MANIFESTS = "manifests"
OTHERS = (MARK, "lost+found")
"""What else may lie beside the blobs: their mark, and what file systems make."""


class LocalBlobs(BlobStore):
    """Blobs under ``root``; ``tmp`` must be on the same file system. ``look_only`` writes nothing there."""

    def __init__(self, root: Path, tmp: Path, grace_seconds: float = 0.0, *, look_only: bool = False) -> None:
        super().__init__(root, grace_seconds)
        self._root, self._tmp, self._look_only = root, tmp, look_only
        self._settling = Lock()

    def put_folder(self, source: Path) -> Blob:
        with storage_errors("cannot store the files"), self._staged() as staged:
            staged.mkdir()
            entries = copy_folder(source, staged)
            reach("blob.written")
            sync_folder(staged)
            digest = folder_digest(entries)
            self._settle(staged, self._place("folders", digest), digest)
            self._note(digest, entries)
        return Blob(digest, sum(entry.size_bytes for entry in entries))

    def put_file(self, source: Path) -> Blob:
        with storage_errors("cannot store the file"), self._staged() as staged:
            size, digest = copy_file(source, staged)
            reach("blob.written")
            self._settle(staged, self._place("files", digest), digest)
        return Blob(digest, size)

    def local_path(self, digest: str) -> Path:
        if is_digest(digest):
            for kind in KINDS:
                place = self._place(kind, digest)
                if place.exists():
                    return place
        raise missing(digest)

    def holds(self, digest: str) -> bool:
        return any(self._place(kind, digest).exists() for kind in KINDS)

    def damage(self, digest: str, only: Collection[str] | None = None) -> list[Damage]:
        return find_damage(self.local_path(digest), digest, self._listed(digest), only)

    def size(self, digest: str) -> int:
        place = self.local_path(digest)
        return sum(entry.size_bytes for entry in self.entries(digest)) if place.is_dir() else place.stat().st_size

    def digests(self) -> Iterator[str]:
        places = (place for kind in (*KINDS, MANIFESTS) for place in self._root.glob(f"{kind}/??/*"))
        yield from dict.fromkeys(place.name for place in places if _is_place(place))

    def strays(self) -> list[str]:
        here = (*KINDS, MANIFESTS, *OTHERS)
        found = [p for p in self._root.iterdir() if p.name not in here and not p.name.startswith("tmp-")]
        for kind in (*KINDS, MANIFESTS):
            for shard in self._root.glob(f"{kind}/*"):
                if not shard.is_dir() or not is_digest(shard.name * 32):
                    found.append(shard)
                    continue
                for path in shard.iterdir():
                    if not _is_place(path) or path.is_dir() is not (kind == "folders"):
                        found.append(path)
                    elif kind == "folders" and (entries := self._listed(path.name)) is not None:
                        found += [path / name for name in set(os.listdir(path)) - {e.name for e in entries}]
        return sorted(str(path.relative_to(self._root)) for path in found)

    def remove_stray(self, path: str) -> None:
        with storage_errors("cannot remove a stray file"):
            delete_path(self._root / path)

    def _entries(self, digest: str) -> tuple[FileEntry, ...]:
        found = self._listed(digest)
        if found is None:
            found = files_of(self.local_path(digest), digest)
            if found is None:
                raise damaged(digest)
            if not self._look_only:
                with suppress(OSError):  # it can still be checked as a whole
                    self._note(digest, found)
        return tuple(found)

    def _listed(self, digest: str) -> list[FileEntry] | None:
        return listed(self._place(MANIFESTS, digest), digest)

    def _note(self, digest: str, entries: list[FileEntry]) -> None:
        """Keep the manifest of a folder, in place of one that is damaged."""
        place = self._place(MANIFESTS, digest)
        with self._staged() as staged:
            write_durable(staged, write_manifest(entries))
            place.parent.mkdir(parents=True, exist_ok=True)
            os.rename(staged, place)
            sync_folder(place.parent)

    def _read(self, digest: str, entry: FileEntry) -> bytes:
        with storage_errors("cannot read the files"):
            try:
                return read_regular(self.local_path(digest) / entry.name)
            except FileNotFoundError:
                raise missing(digest) from None

    def _written(self, digest: str) -> float:
        place = self.local_path(digest) if self.holds(digest) else self._place(MANIFESTS, digest)
        return place.stat().st_mtime

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
        """Move what is staged to its place, and make the whole way to it durable.

        A sound folder that is there stays. A file is replaced in any case: looking at the other would take time that
        tells whether somebody has stored the same bytes before.
        """
        with self._settling:
            a_folder = staged.is_dir()
            if not a_folder or not place.exists() or self.damage(digest):
                if place.is_dir() or (a_folder and place.exists()):
                    self._discard(place)
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

    def _remove(self, digest: str) -> None:
        delete_path(self._place(MANIFESTS, digest))
        if self.holds(digest):
            self._discard(self.local_path(digest))

    def _discard(self, place: Path) -> None:
        # Renamed first: a reader or a crash sees a whole blob or none.
        gone = self._tmp / f"gone-{uuid.uuid4().hex}"
        reach("collect.before_rename")
        os.rename(place, gone)
        sync_folder(place.parent)
        reach("collect.renamed")
        delete_path(gone)


def _is_place(path: Path) -> bool:
    """Whether a blob can lie here: named by its digest, in the folder of its first two digits."""
    return is_digest(path.name) and path.parent.name == path.name[:2]
