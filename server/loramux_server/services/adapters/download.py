"""The files of a version on their way out, checked as they are read."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import BinaryIO

from ...core.types import COMPUTED_WITH, AdapterVersion
from ...host.files import open_regular
from ...store.blobs.files import damaged
from ...store.records import VersionRecord
from ...store.store import Store
from ..common.types import FileSpec

CHUNK_BYTES = 1 << 20


def checked_files(store: Store, record: VersionRecord) -> tuple[AdapterVersion, tuple[FileSpec, ...], tuple[str, ...]]:
    """The version, those of its files that are whole, and the names of those that are lost; blocking.

    Raises DATA_LOSS when what is computed with is damaged; the version is quarantined then.
    """
    blobs = store.blobs
    version = store.adapters.files.located(record)
    found = blobs.local_damage(record.digest)
    if any(damage.name in COMPUTED_WITH for damage in found):
        store.adapters.files.check_damage([version])  # raises, unless there is a copy that is whole
        found = blobs.local_damage(record.digest)
    lost = {damage.name for damage in found if not damage.extra}
    files = (FileSpec(e.name, e.size_bytes, e.digest) for e in blobs.entries(record.digest) if e.name not in lost)
    return version, tuple(files), tuple(sorted(lost))


async def read_files(
    store: Store, version: AdapterVersion, files: tuple[FileSpec, ...]
) -> AsyncIterator[tuple[str, bytes]]:
    """(file name, next bytes of it). Raises DATA_LOSS before the last of a file that is damaged."""
    with store.blobs.holding([version.digest]):
        place = store.blobs.local_path(version.digest)
        for spec in files:
            async for data in _read_checked(place / spec.name, spec.sha256):
                if data is None:
                    await asyncio.to_thread(store.adapters.files.check_damage, [version])
                    raise damaged(version.digest, f"{spec.name} changed while it was read; try again")
                yield spec.name, data


async def _read_checked(path: Path, sha256: str) -> AsyncIterator[bytes | None]:
    """The pieces of a file; before the last one None, if all together are not what they must be."""
    digest, held = hashlib.sha256(), b""

    def read(file: BinaryIO) -> bytes:
        data = file.read(CHUNK_BYTES)
        digest.update(data)
        return data

    try:
        with os.fdopen(await asyncio.to_thread(open_regular, path), "rb") as file:
            while data := await asyncio.to_thread(read, file):
                if held:
                    yield held
                held = data
    except OSError:
        yield None
        return
    if digest.hexdigest() != sha256:
        yield None
    elif held:
        yield held
