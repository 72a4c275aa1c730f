"""File steps that must be safe or durable: opening what a stranger made, and writing what must survive."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..core.errors import Code, Error

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def open_regular(path: Path, *, allow_hard_links: bool = True) -> int:
    """Open a regular file for reading and return its descriptor; never follows a link, never blocks on a FIFO.

    Raises INVALID_ARGUMENT for a link, a device, a FIFO, a folder (and a file with several names, if these are
    not allowed), ``FileNotFoundError`` if there is nothing.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except OSError as exc:
        # ELOOP: a symbolic link; ENXIO: a socket or a device without a driver.
        if exc.errno in (errno.ELOOP, errno.ENXIO):
            raise _not_regular(path) from None
        raise
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode) or (status.st_nlink > 1 and not allow_hard_links):
        os.close(fd)
        raise _not_regular(path)
    return fd


def read_regular(path: Path, *, max_bytes: int | None = None, allow_hard_links: bool = True) -> bytes:
    """All bytes of a regular file, or INVALID_ARGUMENT if it is none or larger than ``max_bytes``."""
    with os.fdopen(open_regular(path, allow_hard_links=allow_hard_links), "rb") as file:
        if max_bytes is None:
            return file.read()
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise Error(Code.INVALID_ARGUMENT, f"{path.name} is larger than {max_bytes} bytes", reason="FILE_TOO_LARGE")
    return data


def read_buffer(path: Path) -> bytearray:
    """All bytes of a regular file, read once into memory that may be changed. INVALID_ARGUMENT if it is none."""
    with os.fdopen(open_regular(path), "rb", buffering=0) as file:
        data = bytearray(os.fstat(file.fileno()).st_size)
        filled = 0
        while filled < len(data) and (count := file.readinto(memoryview(data)[filled:])):
            filled += count
    return data if filled == len(data) else data[:filled]


def lies_under(path: str, folders: Sequence[str] | None) -> bool:
    """Whether a path, all links followed, lies in one of ``folders``; None: anywhere. It need not exist."""
    if folders is None:
        return True
    try:
        place = Path(path).resolve()
        return any(place.is_relative_to(Path(folder).resolve()) for folder in folders)
    except (OSError, ValueError, RuntimeError):  # too long, a NUL, links in a circle
        return False


def write_durable(path: Path, data: bytes | memoryview) -> None:
    """Write a new file and wait until its bytes are on disk. The caller syncs the folder once all files are there."""
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_file(path: Path) -> None:
    """Wait until the bytes of a file that was written by others are on disk."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_folder(path: Path) -> None:
    """Wait until the entries of a folder are on disk."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def storage_errors(doing: str) -> Iterator[None]:
    """Turn an ``OSError`` of the block into an ``Error`` that tells no path: full disk, read-only, or unavailable."""
    try:
        yield
    except OSError as exc:
        detail = exc.strerror or type(exc).__name__
        if exc.errno in _FULL:
            raise Error(
                Code.RESOURCE_EXHAUSTED, f"{doing}: {detail}; free space on the server's disk", reason="STORAGE_FULL"
            ) from exc
        if exc.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise Error(Code.FAILED_PRECONDITION, f"{doing}: {detail}", reason="STORAGE_READ_ONLY") from exc
        raise Error(Code.UNAVAILABLE, f"{doing}: {detail}", reason="STORAGE_UNAVAILABLE") from exc


def _not_regular(path: Path) -> Error:
    return Error(
        Code.INVALID_ARGUMENT,
        f"{path.name} is not a regular file of its own (links, devices and pipes are not followed)",
        reason="NOT_A_REGULAR_FILE",
    )
