"""Files as a cold machine finds them: not in the page cache. Linux; elsewhere nothing is dropped, and it is told."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

BLOCK = 1 << 20


def drop(folder: Path) -> None:
    """Ask the system to forget the files of a folder. It keeps what another process has open and mapped."""
    for path in _files(folder):
        with _opened(path) as fd:
            os.fdatasync(fd)  # what is not written yet would be kept
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


def cached_share(folder: Path) -> float:
    """Share of the bytes of a folder's files that can be read without the disk, probed once in each block."""
    cached = total = 0
    for path in _files(folder):
        with _opened(path) as fd:
            for offset in range(0, os.fstat(fd).st_size, BLOCK):
                total += 1
                cached += _is_cached(fd, offset)
    return cached / total if total else 0.0


def read_rate(folders: Iterable[Path], limit: int) -> float:
    """Bytes per second of reading files whole, one after the other, up to ``limit`` bytes. Drops them before."""
    seconds, size = 0.0, 0
    buffer = bytearray(BLOCK)
    for path in (path for folder in folders for path in _files(folder)):
        if size >= limit:
            break
        drop(path.parent)
        begin = time.perf_counter()
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                size += count
        seconds += time.perf_counter() - begin
    return size / seconds


def _is_cached(fd: int, offset: int) -> bool:
    nowait = getattr(os, "RWF_NOWAIT", None)
    if nowait is None:
        return True
    try:
        return os.preadv(fd, [bytearray(1)], offset, nowait) == 1
    except BlockingIOError:
        return False
    except OSError:  # a file system that cannot tell
        return True


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file())


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY)
    try:
        yield fd
    finally:
        os.close(fd)
