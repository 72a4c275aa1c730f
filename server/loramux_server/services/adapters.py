"""The life of adapters: in, out, listed, renamed, pinned, deleted."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from ..core.backend import Backend, EngineInfo
from ..core.types import StackItem
from .limits import Limits
from .views import AdapterInfo, Page


class AdapterService:
    """Adapters of all tenants. ``ref`` is ``name`` or ``name@version``; another tenant's adapter is NOT_FOUND."""

    def __init__(self, backend: Backend, store: Any, info: EngineInfo, limits: Limits) -> None: ...

    async def list(
        self, tenant: str = "default", *, page_size: int = 100, page_token: str = "", all_versions: bool = False
    ) -> Page[AdapterInfo]:
        """Adapters in order of name: the current version of each, or all versions."""
        raise NotImplementedError

    async def get(self, ref: str, tenant: str = "default") -> AdapterInfo:
        """One version (the current one for a bare name)."""
        raise NotImplementedError

    async def upload(
        self,
        name: str,
        files: AsyncIterator[tuple[str, bytes]],
        tenant: str = "default",
        *,
        metadata: dict[str, str] | None = None,
    ) -> AdapterInfo:
        """Publish a PEFT folder as the next version of ``name``, current at once.

        ``files`` gives (path, bytes) pieces: pieces of one file follow each other, a new path starts the next file.
        Answers only when the version can be used. Raises INVALID_ARGUMENT, FAILED_PRECONDITION (other base),
        RESOURCE_EXHAUSTED (too large); then nothing is stored.
        """
        raise NotImplementedError

    def download(self, ref: str, tenant: str = "default") -> AsyncIterator[tuple[str, bytes]]:
        """The PEFT folder of a version as (path, bytes) pieces of at most 1 MiB, in the form ``upload`` takes."""
        raise NotImplementedError

    async def delete(self, ref: str, tenant: str = "default") -> None:
        """Delete one version, or with a bare name all of them. Requests that run finish with what they have."""
        raise NotImplementedError

    async def set_alias(self, name: str, version: int, tenant: str = "default") -> AdapterInfo:
        """Make the bare name mean ``version`` (promote or roll back), once that version is resident."""
        raise NotImplementedError

    async def pin(self, ref: str, tenant: str = "default") -> AdapterInfo:
        """Load a version and keep it resident."""
        raise NotImplementedError

    async def unpin(self, ref: str, tenant: str = "default") -> AdapterInfo:
        """Let a version be evicted again."""
        raise NotImplementedError

    async def compose(
        self, name: str, stack: tuple[StackItem, ...], method: str, tenant: str = "default", rank: int = 0
    ) -> AdapterInfo:
        """Merge a stack into a new version. Not offered yet: raises UNIMPLEMENTED."""
        raise NotImplementedError
