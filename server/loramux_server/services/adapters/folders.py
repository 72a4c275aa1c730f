"""Adapters from folders of the server's own machine, below the one root that the operator allows."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

from ...core.call import about
from ...core.callers.principal import Principal
from ...core.errors import Code, Error, invalid_field
from ...store.adapters.refs import check_name
from ...store.records import VersionRecord
from ..common.checks import shown
from ..common.shielding import to_the_end
from ..common.uploads import ADAPTER_FILES
from .service import AdapterService

LOADED_FROM = "loaded_from"
"""Key of a version's metadata: the folder below the root."""
PIECE = 1 << 20
FIELD = "lora_path"


class FolderService:
    """Publishes folders below ``root`` as versions, through the checks of any upload; None: there is no root."""

    def __init__(self, adapters: AdapterService, root: Path | None) -> None:
        self._adapters, self._root = adapters, root

    async def load(self, name: str, path: str, principal: Principal, *, replace: bool = False) -> VersionRecord:
        """Publish the folder at ``path``, absolute or relative to the root, as the current version of ``name``.

        Raises PERMISSION_DENIED without a root, INVALID_ARGUMENT for a name that there is already unless ``replace``,
        NOT_FOUND for what is no folder below the root, and what an upload raises.
        """
        about(name)
        root = self._allowed_root()
        check_name(name, "lora_name")
        if not replace and await self._exists(name, principal):
            raise invalid_field("lora_name", f"{name!r} is there already; set load_inplace for a new version of it")
        with ExitStack() as stack:
            folder, files = await to_the_end(asyncio.to_thread(_open_below, root, path, stack))
            metadata = {LOADED_FROM: folder}
            return await self._adapters.upload(name, _pieces(files), principal, metadata=metadata)

    async def unload(self, name: str, principal: Principal) -> None:
        """Delete an adapter whose versions all came from folders: these can be loaded again, others could not.

        Raises NOT_FOUND, and FAILED_PRECONDITION for one with versions of another origin.
        """
        about(name)
        self._allowed_root()
        check_name(name, "lora_name")
        found = await self._adapters.get(name, principal)
        others = [str(record.version) for record in found.versions if LOADED_FROM not in record.meta.metadata]
        if others:
            what = f"versions of {name!r} did not come from a folder ({', '.join(others[:20])})"
            raise Error(Code.FAILED_PRECONDITION, f"{what}; to delete them too, delete the adapter itself")
        await self._adapters.delete(name, principal)

    def _allowed_root(self) -> Path:
        if self._root is None:
            what = "this server loads no folders of its machine; the operator allows it with --lora-root"
            raise Error(Code.PERMISSION_DENIED, what, reason="NO_LORA_ROOT")
        return self._root

    async def _exists(self, name: str, principal: Principal) -> bool:
        try:
            await self._adapters.get(name, principal)
        except Error as error:
            if error.code is Code.NOT_FOUND:
                return False
            raise
        return True


def _open_below(root: Path, path: str, stack: ExitStack) -> tuple[str, list[tuple[str, BinaryIO]]]:
    """The folder's path from the root, and its files, opened: nothing that happens to names afterwards matters.

    Links are followed as long as they stay below the root. The way that was found is then walked again without
    following any, so that one that is changed meanwhile leads nowhere.
    """
    if "\0" in path:
        raise _not_found(path)
    top = Path(os.path.realpath(root))
    try:
        below = Path(os.path.realpath(top / path)).relative_to(top)
        folder = _enter(top, below.parts, stack)
        names = set(os.listdir(folder))
        return str(below), [(name, _open_file(top, below / name, stack)) for name in ADAPTER_FILES if name in names]
    except (OSError, ValueError):
        raise _not_found(path) from None


def _enter(top: Path, parts: tuple[str, ...], stack: ExitStack) -> int:
    """A descriptor of the folder."""
    folder = _closed_later(os.open(top, os.O_RDONLY | os.O_DIRECTORY), stack)
    for part in parts:
        folder = _closed_later(os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder), stack)
    return folder


def _open_file(top: Path, path: Path, stack: ExitStack) -> BinaryIO:
    below = Path(os.path.realpath(top / path)).relative_to(top)
    # A pipe must not wait for its other end.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
    file = _closed_later(os.open(below.name, flags, dir_fd=_enter(top, below.parent.parts, stack)), stack)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        raise OSError("not a regular file")
    return os.fdopen(file, "rb", closefd=False)


def _closed_later(descriptor: int, stack: ExitStack) -> int:
    stack.callback(os.close, descriptor)
    return descriptor


async def _pieces(files: list[tuple[str, BinaryIO]]) -> AsyncIterator[tuple[str, bytes]]:
    for name, file in files:
        while piece := await asyncio.to_thread(file.read, PIECE):
            yield name, piece


def _not_found(path: str) -> Error:
    what = f"{FIELD}: {shown(path)} is no folder below --lora-root with files that can be read"
    return Error(Code.NOT_FOUND, what, reason="LORA_PATH_NOT_FOUND")
