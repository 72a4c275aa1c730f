"""The files of a blob, on a local disk: what a folder may hold, copying with a hash, and the digest of a folder.

The digest of a folder is the SHA-256 of its manifest: a header, and a line for each file with its SHA-256, size and
name. So a manifest can be checked by the name that it is stored under, and says all that is to be known of the files.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..core.errors import Code, Error
from ..core.files import open_regular

MAX_FILES = 64
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


def names_in(folder: Path) -> list[str]:
    """The names in a flat folder, in order. INVALID_ARGUMENT unless there are 1 to ``MAX_FILES``, all plain."""
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


def delete_path(path: Path) -> None:
    """Remove a file or a folder; fine if it is gone."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
