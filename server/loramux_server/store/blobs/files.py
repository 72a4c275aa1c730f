"""The files of a blob, on a local disk: what a folder may hold, copying with a hash, and the digest of a folder.

The digest of a folder is the SHA-256 of its manifest: a header, and a line for each file with its SHA-256, size and
name. So a manifest can be checked by the name that it is stored under, and says all that is to be known of the files.
It is kept beside the folder, so that each file can be checked by itself, also when another one is lost.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...core.errors import DAMAGED, MISSING, Code, Error
from ...host.files import open_regular, read_regular

MAX_MANIFEST_BYTES = 64 << 10
MAX_FILES = 64
MANIFEST = ".manifest"
"""Beside the files of a folder that is stored elsewhere, and of its local copy. No file of a folder is called so."""
CHUNK = 1 << 20
_HEADER = b"loramux folder 1\n"
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}", re.ASCII)
_LINE = re.compile(r"([0-9a-f]{64}) ([0-9]{1,18}) (.*)", re.ASCII)


@dataclass(frozen=True, slots=True, order=True)
class FileEntry:
    """A file of a folder: its name, its bytes, its SHA-256."""

    name: str
    size_bytes: int
    digest: str


@dataclass(frozen=True, slots=True)
class Damage:
    """What is wrong with a file of a blob. ``name`` is empty for the only file of a blob, or all of a folder."""

    name: str
    words: str
    missing: bool = False
    extra: bool = False
    """A file that is no part of the folder; the others are what they should be."""

    def __str__(self) -> str:
        return f"{self.name} {self.words}" if self.name else self.words


def names_in(folder: Path) -> list[str]:
    """The names in a flat folder, in order, but for a copy's manifest.

    INVALID_ARGUMENT unless there are 1 to ``MAX_FILES``, all plain.
    """
    names = sorted(name for name in os.listdir(folder) if name != MANIFEST)
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


def copy_file(source: Path, target: Path | None) -> tuple[int, str]:
    """Copy a regular file durably (or only read it) and return its size and SHA-256."""
    digest = hashlib.sha256()
    size = 0
    with os.fdopen(open_regular(source), "rb", buffering=0) as src:
        dst = None if target is None else target.open("xb", buffering=0)
        try:
            while chunk := src.read(CHUNK):
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


def copy_folder(source: Path, target: Path | None) -> list[FileEntry]:
    """Copy a flat folder's files durably into an empty one (or only read them) and return what they are."""
    return [FileEntry(name, *copy_file(source / name, target and target / name)) for name in names_in(source)]


def write_manifest(entries: Sequence[FileEntry]) -> bytes:
    """The manifest of a folder."""
    return _HEADER + b"".join(f"{e.digest} {e.size_bytes} {e.name}\n".encode() for e in sorted(entries))


def read_manifest(data: bytes) -> list[FileEntry]:
    """The opposite of :func:`write_manifest`. Raises ValueError for what is none."""
    if not data.startswith(_HEADER):
        raise ValueError("no manifest of a folder")
    found = [_LINE.fullmatch(line) for line in data.removeprefix(_HEADER).decode().splitlines()]
    entries = [
        FileEntry(match[3], int(match[2]), match[1]) for match in found if match and _FILE_NAME.fullmatch(match[3])
    ]
    if len(entries) != len(found) or not entries:
        raise ValueError("a damaged manifest of a folder")
    return entries


def folder_digest(entries: Sequence[FileEntry]) -> str:
    """What a folder with these files is called."""
    return hashlib.sha256(write_manifest(entries)).hexdigest()


def listed(manifest: Path, digest: str) -> list[FileEntry] | None:
    """The files of a folder by its manifest; None where that is missing or damaged."""
    try:
        data = read_regular(manifest, max_bytes=MAX_MANIFEST_BYTES)
    except (OSError, Error):
        return None
    return read_manifest(data) if hashlib.sha256(data).hexdigest() == digest else None


def files_of(folder: Path, digest: str) -> list[FileEntry] | None:
    """The files of a folder whose manifest is not at hand, all of them read; None unless they fit its digest."""
    try:
        found = copy_folder(folder, None)
    except (OSError, Error):
        return None
    return found if folder_digest(found) == digest else None


def find_damage(
    place: Path, digest: str, entries: Sequence[FileEntry] | None, only: Collection[str] | None = None
) -> list[Damage]:
    """What is wrong with a stored file or folder, all of it read; of a folder only the files in ``only``, if given.

    ``entries`` are the folder's, None where its manifest is not at hand.
    """
    if not place.is_dir():
        damage = check_file(place, "", None, digest)
        return [] if damage is None else [damage]
    if entries is None:
        if files_of(place, digest) is not None:
            return []
        return [Damage("", "the files are not those that were stored, and the list of these is lost")]
    wanted = [entry for entry in entries if only is None or entry.name in only]
    checked = (check_file(place / entry.name, entry.name, entry.size_bytes, entry.digest) for entry in wanted)
    found = [damage for damage in checked if damage is not None]
    if only is None:
        extra = sorted(set(os.listdir(place)) - {MANIFEST, *(entry.name for entry in entries)})
        found += [Damage(name, "was not there when the folder was stored", extra=True) for name in extra]
    return found


def check_file(path: Path, name: str, size: int | None, digest: str) -> Damage | None:
    """What is wrong with one stored file that must have this SHA-256, and this size if it is known."""
    try:
        found, sha256 = copy_file(path, None)
    except FileNotFoundError:
        return Damage(name, "is missing", missing=True)
    except (OSError, Error) as error:
        return Damage(name, f"cannot be read: {error.strerror if isinstance(error, OSError) else error.message}")
    if size is not None and found != size:
        return Damage(name, f"has {found} bytes, and {size} were stored")
    return None if sha256 == digest else Damage(name, "does not hold the bytes that were stored")


def delete_path(path: Path) -> None:
    """Remove a file or a folder; fine if it is gone."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def missing(digest: str) -> Error:
    """The error for a blob that is not there."""
    return Error(Code.DATA_LOSS, f"the files of {digest[:64]!r} are missing from the store", reason=MISSING)


def damaged(digest: str, words: str = "") -> Error:
    """The error for a blob that is not what its digest says."""
    more = f": {words}" if words else ""
    return Error(Code.DATA_LOSS, f"the files of {digest!r} are damaged{more}", reason=DAMAGED)
