"""The state directory: its layout, and the lock that keeps a second server out."""

from __future__ import annotations

import fcntl
import os
import shutil
import uuid
from pathlib import Path
from typing import Self

from ..core.errors import Code, Error, invalid_field
from ..host.files import storage_errors, sync_folder, write_durable
from ..host.home import expand

LOCK_FILE = "lock"
ID_FILE = "id"
JOBS = "jobs"
"""The folder of a state directory with a folder for each job."""


class StateDir:
    """An open state directory, locked for this process until :meth:`close`.

    ``db`` is the database file, ``blobs`` holds adapters and datasets, ``tmp`` what is being written (emptied at
    every open), ``base`` the converted base model, ``jobs`` a folder for each job, with its rows and checkpoints.
    """

    def __init__(self, path: Path, lock_fd: int) -> None:
        self.path = path
        self.db = path / "loramux.db"
        self.blobs = path / "blobs"
        self.tmp = path / "tmp"
        self.base = path / "base"
        self.jobs = path / JOBS
        self._lock_fd = lock_fd
        self.id = ""
        """Names the directory for good, and so the one server that holds it."""

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """Make the layout where it is missing, take the lock and empty ``tmp``.

        Raises FAILED_PRECONDITION when the directory cannot be written or another server holds it.
        """
        try:
            folder = expand(os.fspath(path)).absolute()
        except ValueError as exc:
            raise invalid_field("--state-dir", str(exc)) from None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock_fd = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as exc:
            raise _unusable(folder, exc) from exc
        state = cls(folder, lock_fd)
        try:
            state._lock()
            state._lay_out()
        except OSError as exc:
            state.close()
            raise _unusable(folder, exc) from exc
        except Error:
            state.close()
            raise
        return state

    def new_tmp(self, prefix: str) -> Path:
        """A fresh folder in ``tmp``. Whoever asked removes it; what a crash leaves goes at the next start."""
        folder = self.tmp / f"{prefix}-{uuid.uuid4().hex}"
        with storage_errors("cannot make a temporary folder"):
            folder.mkdir()
        return folder

    def job_folder(self, job_id: str) -> Path:
        """The folder of a job, which stays until it is dropped; made if need be."""
        folder = self.jobs / job_id
        with storage_errors("cannot make the job's folder"):
            folder.mkdir(exist_ok=True)
            sync_folder(self.jobs)
        return folder

    def adopt_job_folder(self, job_id: str, folder: Path) -> None:
        """Make a folder of ``new_tmp`` a new job's own, with all that is in it; durable on return."""
        with storage_errors("cannot make the job's folder"):
            sync_folder(folder)
            folder.rename(self.jobs / job_id)
            sync_folder(self.jobs)

    def drop_job_folder(self, job_id: str) -> None:
        """Remove a job's folder, if it has one. It is gone at once, even for an engine that still writes there."""
        doomed = self.tmp / f"job-{uuid.uuid4().hex}"
        with storage_errors("cannot remove the job's folder"):
            try:
                (self.jobs / job_id).rename(doomed)
            except FileNotFoundError:
                return
        shutil.rmtree(doomed, ignore_errors=True)

    def close(self) -> None:
        """Release the lock. Harmless twice."""
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    def _lock(self) -> None:
        try:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._lock_fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
            raise Error(
                Code.FAILED_PRECONDITION,
                f"state directory {self.path} is in use by another server (process {holder}); "
                "stop it or give another --state-dir",
                reason="STATE_DIR_LOCKED",
            ) from None
        os.ftruncate(self._lock_fd, 0)
        os.pwrite(self._lock_fd, f"{os.getpid()}\n".encode(), 0)

    def _lay_out(self) -> None:
        name = self.path / ID_FILE
        if not name.exists():
            fresh = self.path / f"{ID_FILE}.{uuid.uuid4().hex}"
            write_durable(fresh, uuid.uuid4().hex.encode())
            fresh.rename(name)
        self.id = name.read_text("ascii", errors="replace").strip()[:64]
        for folder in (self.blobs, self.base, self.tmp, self.jobs):
            folder.mkdir(exist_ok=True)
        for left in os.scandir(self.tmp):
            if left.is_dir(follow_symlinks=False):
                # A process that the last server started may be about to end, and still write there.
                shutil.rmtree(left.path, ignore_errors=True)
            else:
                os.unlink(left.path)
        sync_folder(self.path)


def _unusable(folder: Path, exc: OSError) -> Error:
    return Error(
        Code.FAILED_PRECONDITION,
        f"cannot use state directory {folder}: {exc.strerror or exc}; give one that can be written with --state-dir",
        reason="STATE_DIR_UNUSABLE",
    )
