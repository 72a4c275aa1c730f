"""The life of adapters: in, out, listed, renamed, pinned, deleted."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from ..core.backend import Backend, EngineInfo
from ..core.types import StackItem
from .limits import Limits
from .views import AdapterInfo, AdapterVersionInfo, Download, FileSpec, Page


class AdapterService:
    """Adapters of all tenants. ``ref`` is ``name`` or ``name@version``; another tenant's adapter is NOT_FOUND."""

    def __init__(self, backend: Backend, store: Any, info: EngineInfo, limits: Limits) -> None: ...

    async def list(
        self, tenant: str = "default", *, prefix: str = "", page_size: int = 100, page_token: str = ""
    ) -> Page[AdapterInfo]:
        """Adapters in order of name, without ``versions``."""
        raise NotImplementedError

    async def get(self, ref: str, tenant: str = "default") -> AdapterInfo:
        """An adapter with all its versions; with ``name@version`` or ``name@alias``, with that version only."""
        raise NotImplementedError

    async def upload(
        self,
        name: str,
        chunks: AsyncIterator[tuple[str, bytes]],
        tenant: str = "default",
        *,
        files: tuple[FileSpec, ...] = (),
        set_current: bool = True,
        metadata: dict[str, str] | None = None,
    ) -> AdapterVersionInfo:
        """Publish a PEFT folder as the next version of ``name``.

        ``chunks`` gives (file name, next bytes of it): the pieces of one file follow each other. ``files`` says what
        will come, with sizes and hashes to check; empty: whatever comes. Answers only when the version can be used.
        Raises INVALID_ARGUMENT, FAILED_PRECONDITION (other base), RESOURCE_EXHAUSTED (too large); then nothing is
        stored.
        """
        raise NotImplementedError

    async def download(self, ref: str, tenant: str = "default") -> Download:
        """The PEFT folder of a version, its files to be read from the answer's ``chunks``."""
        raise NotImplementedError

    async def delete(self, ref: str, tenant: str = "default") -> int:
        """Delete one version, or with a bare name all of them; gives the number of versions that are gone.

        Requests that run finish with what they have.
        """
        raise NotImplementedError

    async def set_alias(self, name: str, version: int, tenant: str = "default", *, alias: str = "") -> AdapterInfo:
        """Make the bare name (or ``name@alias``) mean ``version``, once that version is resident.

        Version 0 with an alias removes the alias.
        """
        raise NotImplementedError

    async def pin(self, ref: str, tenant: str = "default") -> AdapterInfo:
        """Load a version and keep it resident."""
        raise NotImplementedError

    async def unpin(self, ref: str, tenant: str = "default") -> AdapterInfo:
        """Let a version be evicted again."""
        raise NotImplementedError

    async def compose(
        self, name: str, stack: tuple[StackItem, ...], method: str, tenant: str = "default"
    ) -> AdapterVersionInfo:
        """Merge a stack into a new version. Not offered yet: raises UNIMPLEMENTED."""
        raise NotImplementedError
