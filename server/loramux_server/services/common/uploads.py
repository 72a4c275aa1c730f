"""What a client uploads, on its way to disk: bounded, checked against what was announced, never trusted with a path."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import BinaryIO

from ...core.errors import Code, Error, invalid_field
from ...host.files import storage_errors
from ...peft.config import CONFIG_FILE
from ...peft.schema import CARD_FILE, WEIGHTS_FILE
from .checks import shown
from .types import FileSpec

ADAPTER_FILES = (CONFIG_FILE, WEIGHTS_FILE, CARD_FILE)
"""The files of an adapter folder; nothing else is taken."""


class _File:
    """One file being written."""

    def __init__(self, path: Path) -> None:
        self.size = 0
        self._digest = hashlib.sha256()
        self._file: BinaryIO = path.open("xb")

    def write(self, data: bytes) -> None:
        with storage_errors("cannot store the upload"):
            self._file.write(data)
        self._digest.update(data)
        self.size += len(data)

    def close(self) -> str:
        """Close it; gives its SHA-256."""
        with storage_errors("cannot store the upload"):
            self._file.close()
        return self._digest.hexdigest()


async def receive_adapter(
    chunks: AsyncIterator[tuple[str, bytes]], folder: Path, files: Sequence[FileSpec], max_bytes: int
) -> None:
    """Write the pieces of an adapter's files into ``folder``.

    Raises INVALID_ARGUMENT for a file that no adapter has, pieces out of order, or sizes and hashes that differ from
    ``files``; RESOURCE_EXHAUSTED beyond ``max_bytes``. The door ends an upload that stalls.
    """
    announced = _announced(files, max_bytes)
    done: set[str] = set()
    name, current, total = "", None, 0
    try:
        async for piece_name, data in chunks:
            if current is None or piece_name != name:
                if current is not None:
                    _close(current, name, announced)
                    done.add(name)
                name = piece_name
                if name in done:
                    raise invalid_field("chunk.name", f"{shown(name)} comes again; send the pieces of a file together")
                _check_file_name(name, "chunk.name")
                if announced and name not in announced:
                    raise invalid_field("chunk.name", f"{shown(name)} is not in header.files")
                current = _File(folder / name)
            total += len(data)
            if total > max_bytes:
                raise _too_large(max_bytes)
            if announced and current.size + len(data) > announced[name].size:
                raise _more_than_announced("header.files", announced[name])
            await asyncio.to_thread(current.write, data)
        if current is not None:
            _close(current, name, announced)
            done.add(name)
            current = None
    finally:
        if current is not None:
            current.close()
    if missing := sorted(announced.keys() - done):
        raise invalid_field("header.files", f"names {', '.join(missing)}, but no bytes of it came")


async def receive_file(chunks: AsyncIterator[bytes], path: Path, max_bytes: int, sha256: str = "") -> int:
    """Write one file; gives the number of its lines that are not blank. Errors as ``receive_adapter``."""
    file = _File(path)
    rows, line_is_blank = 0, True
    try:
        async for data in chunks:
            if file.size + len(data) > max_bytes:
                raise _too_large(max_bytes)
            for i, part in enumerate(data.split(b"\n")):
                if i:
                    line_is_blank = True
                if line_is_blank and part.strip():
                    line_is_blank = False
                    rows += 1
            await asyncio.to_thread(file.write, data)
    finally:
        digest = file.close()
    if sha256 and digest != sha256.lower():
        raise invalid_field("header.sha256", f"is {shown(sha256)}, but what came has {digest}; send it again")
    return rows


def _announced(files: Sequence[FileSpec], max_bytes: int) -> dict[str, FileSpec]:
    for i, file in enumerate(files):
        _check_file_name(file.name, f"header.files[{i}].name")
        if file.size < 0:
            raise invalid_field(f"header.files[{i}].size", f"is {file.size}; it must be at least 0")
    if len({file.name for file in files}) < len(files):
        raise invalid_field("header.files", "names a file twice")
    if sum(file.size for file in files) > max_bytes:
        raise _too_large(max_bytes)
    return {file.name: file for file in files}


def _check_file_name(name: str, field: str) -> None:
    if name not in ADAPTER_FILES:
        hint = (
            " (pickles are never opened: save with safe_serialization=True)" if name.endswith((".bin", ".pt")) else ""
        )
        raise invalid_field(field, f"{shown(name)} is none of {', '.join(ADAPTER_FILES)}{hint}; leave it out")


def _close(file: _File, name: str, announced: dict[str, FileSpec]) -> None:
    digest = file.close()
    wanted = announced.get(name)
    if wanted is None:
        return
    if file.size != wanted.size:
        raise invalid_field("header.files", f"says {wanted.size} bytes for {name}, but {file.size} came; send it again")
    if wanted.sha256 and digest != wanted.sha256.lower():
        raise invalid_field(
            "header.files", f"says SHA-256 {shown(wanted.sha256)} for {name}, but what came has {digest}"
        )


def _more_than_announced(field: str, file: FileSpec) -> Error:
    return invalid_field(field, f"says {file.size} bytes for {file.name}, but more came; send it again")


def _too_large(max_bytes: int) -> Error:
    return Error(Code.RESOURCE_EXHAUSTED, f"the upload is larger than {max_bytes} bytes", reason="UPLOAD_TOO_LARGE")
