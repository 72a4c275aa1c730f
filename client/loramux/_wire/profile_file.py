"""A profile on its way into a file."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from types import TracebackType

from ..errors import DataLoss
from ..types import Profile
from ..v1 import server_pb2
from .messages.fields import path_of


class ProfileWriter:
    """Writes a profile under a passing name beside its place, which it takes once it is whole.

    Leaving the ``with`` block early removes what is not finished. Raises OSError where it cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = path_of("path", path)
        self._header: server_pb2.ProfileEngineHeader | None = None
        self._size = 0

    def __enter__(self) -> ProfileWriter:
        descriptor, part = tempfile.mkstemp(prefix=f".{self._path.name}.", dir=self._path.parent)
        self._part, self._file = Path(part), os.fdopen(descriptor, "wb")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._file.close()
        self._part.unlink(missing_ok=True)

    def write(self, message: server_pb2.ProfileEngineResponse) -> None:
        """Take the next message."""
        if message.HasField("header"):
            self._header = message.header
        else:
            self._file.write(message.chunk.data)
            self._size += len(message.chunk.data)

    def finish(self) -> Profile:
        """Put the file in its place. Raises DataLoss when it is not whole."""
        header = self._header
        if header is None or self._size != sum(info.size for info in header.files):
            raise DataLoss("the profile ended early")
        self._file.close()
        self._part.replace(self._path)
        return Profile(str(self._path), self._size, header.events, header.events_dropped)
