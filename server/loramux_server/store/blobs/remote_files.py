"""A file system of fsspec, such as an object store, with errors of ours in place of those of each kind of store."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ...core.errors import Code, Error
from ...host.files import storage_errors
from .files import CHUNK


class RemoteFiles:
    """Files by their paths below ``root``. Listings are never cached: other servers write there too.

    Every method raises UNAVAILABLE (STORAGE_UNAVAILABLE) when the store cannot be spoken to, and those of one file
    ``FileNotFoundError`` where it is not there, unless they say otherwise.
    """

    def __init__(self, fs: Any, root: str) -> None:
        self._fs, self._root = fs, root.rstrip("/")

    def exists(self, path: str) -> bool:
        """Whether there is a file."""
        with self._errors("cannot look for files"):
            return bool(self._fs.exists(self._at(path)))

    def size(self, path: str) -> int:
        """Bytes of a file."""
        with self._errors("cannot read the files"):
            return int(self._fs.info(self._at(path))["size"])

    def modified(self, path: str) -> float:
        """When a file was written, in seconds since the epoch."""
        with self._errors("cannot look for files"):
            return float(self._fs.modified(self._at(path)).timestamp())

    def read(self, path: str) -> bytes:
        """All bytes of a file."""
        with self._errors("cannot read the files"):
            return bytes(self._fs.cat_file(self._at(path)))

    def sha256(self, path: str) -> str:
        """The SHA-256 of a file, read in pieces."""
        found = hashlib.sha256()
        with self._errors("cannot read the files"), self._fs.open(self._at(path), "rb") as file:
            while chunk := file.read(CHUNK):
                found.update(chunk)
        return found.hexdigest()

    def download(self, path: str, target: Path) -> None:
        """Copy a file to this machine."""
        with self._errors("cannot read the files"):
            self._fs.get_file(self._at(path), os.fspath(target))

    def upload(self, source: Path, path: str, size: int) -> None:
        """Copy a file of ``size`` bytes from this machine. UNAVAILABLE (BLOB_CUT) unless all of them arrive."""
        with self._errors("cannot store the files"):
            self._fs.put_file(os.fspath(source), self._at(path))
        if (stored := self.size(path)) != size:
            raise Error(
                Code.UNAVAILABLE, f"{stored} of {size} bytes arrived in the blob store; try again", reason="BLOB_CUT"
            )

    def remove(self, path: str) -> None:
        """Remove a file; fine if there is none."""
        with self._errors("cannot remove unused files"), suppress(FileNotFoundError):
            self._fs.rm_file(self._at(path))

    def remove_folder(self, folder: str) -> None:
        """Remove all files below a folder, and the folder where the store has such."""
        for path in self.find(folder):
            self.remove(path)
        with self._errors("cannot remove unused files"), suppress(OSError, NotImplementedError):
            self._fs.rmdir(self._at(folder))  # object stores have no folders

    def find(self, folder: str) -> list[str]:
        """Paths of all files below a folder, or of the file itself; none if it is not there."""
        with self._errors("cannot list the files"):
            try:
                found = self._fs.find(self._at(folder))
            except FileNotFoundError:
                return []
        return [path.removeprefix(self._root).strip("/") for path in found]

    def _at(self, path: str) -> str:
        return f"{self._root}/{path}" if path else self._root

    @contextmanager
    def _errors(self, doing: str) -> Iterator[None]:
        try:
            self._fs.invalidate_cache()
            yield
        except (FileNotFoundError, Error):
            raise
        except OSError:
            with storage_errors(doing):
                raise
        except Exception as exc:  # each kind of store has errors of its own (credentials, HTTP, ...)
            raise Error(
                Code.UNAVAILABLE, f"{doing}: {type(exc).__name__} from the blob store", reason="STORAGE_UNAVAILABLE"
            ) from exc
