"""The files of stored folders for those who know nothing but a digest and where the blobs are on their machine."""

from __future__ import annotations

import errno
import hashlib
from pathlib import Path

from ...core.errors import DAMAGED, MISSING, Code, Error, invalid_field
from ...core.types import COMPUTED_WITH, is_digest
from ...host.files import read_buffer, storage_errors
from .files import MANIFEST, damaged, files_of, listed, missing


class BlobReader:
    """Reads adapters below a folder: the place of a local store's blobs, or that of the copies of a remote one's.

    It never writes, so any process may have one; what keeps the files there is ``BlobStore.holding``. Thread-safe.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self, digest: str) -> dict[str, bytearray]:
        """The files that an adapter is computed with, each read once and checked: what is given is what was read.

        Raises INVALID_ARGUMENT for what is no digest, DATA_LOSS for files that are missing or not what was stored,
        UNAVAILABLE when they cannot be read just now.
        """
        if not is_digest(digest):
            raise invalid_field("digest", f"is {digest[:80]!r}; give the 64 lower-case hexadecimal digits of a SHA-256")
        place, manifest = self._find(digest)
        entries = listed(manifest, digest) or files_of(place, digest)
        if entries is None:
            raise damaged(digest, "the list of them is lost, and they are not those that were stored")
        sha256 = {entry.name: entry.digest for entry in entries}
        return {name: _read_checked(place / name, sha256.get(name, "")) for name in COMPUTED_WITH}

    def _find(self, digest: str) -> tuple[Path, Path]:
        """A folder and its manifest: apart where blobs are stored, together in a copy."""
        stored, copy = self.folder / "folders" / digest[:2] / digest, self.folder / digest
        if stored.is_dir():
            return stored, self.folder / "manifests" / digest[:2] / digest
        if copy.is_dir():
            return copy, copy / MANIFEST
        raise missing(digest)


def _read_checked(path: Path, sha256: str) -> bytearray:
    with storage_errors("cannot read the adapter"):
        try:
            data = read_buffer(path)
        except (FileNotFoundError, NotADirectoryError):
            raise Error(Code.DATA_LOSS, f"{path.name} is missing", reason=MISSING) from None
        except Error as error:  # a link, a folder: nothing that was stored
            raise Error(Code.DATA_LOSS, error.message, reason=DAMAGED) from error
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            raise Error(Code.DATA_LOSS, f"{path.name} cannot be read: {error.strerror}", reason=DAMAGED) from error
    if hashlib.sha256(data).hexdigest() != sha256:
        raise Error(Code.DATA_LOSS, f"{path.name} does not hold the bytes that were stored", reason=DAMAGED)
    return data
