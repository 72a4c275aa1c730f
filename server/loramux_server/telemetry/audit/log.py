"""Writing the audit log. Several processes may write to one file: the server, and commands beside it."""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ...core.errors import Code, Error
from ...host.files import storage_errors, sync_folder
from .entry import Entry


class AuditLog:
    """The audit log of a server: a file that is only appended to, and older ones beside it.

    A file that would exceed ``max_bytes`` becomes ``PATH.1``, which becomes ``PATH.2``, and so on up to ``keep``;
    the oldest is removed. May be used from any thread.
    """

    def __init__(self, path: Path, *, max_bytes: int = 64 << 20, keep: int = 10) -> None:
        self.path = path
        self._max_bytes = max_bytes
        self._keep = keep
        self._lock = threading.Lock()

    def open(self) -> None:
        """Make the file where there is none. Raises FAILED_PRECONDITION where it cannot be written."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with self._file():
                pass
        except OSError as exc:
            raise Error(
                Code.FAILED_PRECONDITION,
                f"cannot write the audit log {self.path}: {exc.strerror or exc}; name another file with --audit-log",
                reason="AUDIT_LOG_UNUSABLE",
            ) from exc

    def write(self, *entries: Entry) -> None:
        """Append entries; they are on disk on return. Raises STORAGE_FULL and its kin."""
        data = b"".join(entry.line() for entry in entries)
        with storage_errors("cannot write the audit log"), self._file(len(data)) as fd:
            # In one write, so that a kill leaves all of it or nothing. After a power cut the last line may be torn.
            data = b"\n" + data if _is_torn(fd) else data
            while data:
                data = data[os.write(fd, data) :]
            os.fsync(fd)

    @contextmanager
    def _file(self, more: int = 0) -> Iterator[int]:
        """The file with room for ``more`` bytes, locked against other threads and processes."""
        with self._lock:
            while True:
                fd = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX)
                    if not _is_at(fd, self.path):
                        continue  # another process has rotated it meanwhile
                    size = os.fstat(fd).st_size
                    if size and size + more > self._max_bytes:
                        self._rotate()
                        continue
                    if not size:
                        sync_folder(self.path.parent)  # it may be new
                    yield fd
                    return
                finally:
                    os.close(fd)  # and so unlocked

    def _rotate(self) -> None:
        """Move every file on by one. The lock of the current one keeps other processes out."""
        for number in range(self._keep, 0, -1):
            older = rotated(self.path, number - 1)
            if older.exists():
                older.replace(rotated(self.path, number))
        if not self._keep:
            self.path.unlink()
        sync_folder(self.path.parent)


def rotated(path: Path, number: int) -> Path:
    """The file that was rotated ``number`` times; 0 is the current one."""
    return path.with_name(f"{path.name}.{number}") if number else path


def files_of(path: Path) -> list[Path]:
    """The files of an audit log that exist, oldest first."""
    numbers = (other.name.removeprefix(f"{path.name}.") for other in path.parent.glob(f"{path.name}.*"))
    older = sorted((int(n) for n in numbers if n.isascii() and n.isdigit()), reverse=True)
    return [file for file in (*(rotated(path, n) for n in older), path) if file.is_file()]


def _is_torn(fd: int) -> bool:
    size = os.fstat(fd).st_size
    return size > 0 and os.pread(fd, 1, size - 1) != b"\n"


def _is_at(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False
