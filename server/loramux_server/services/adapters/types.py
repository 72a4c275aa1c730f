"""What the adapter services take and answer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from ...core.callers.principal import Principal
from ...core.compose import ComposeMethod
from ...core.types import StackItem
from ...store.records import VersionRecord
from ..common.types import FileSpec


@dataclass(frozen=True, slots=True)
class AdapterInfo:
    """A name and the versions behind it."""

    name: str
    tenant: str
    current: VersionRecord | None
    """The version that the plain name means; None: none is usable."""
    versions: tuple[VersionRecord, ...] = ()
    """Newest first; empty in lists."""
    aliases: dict[str, int] = field(default_factory=dict)
    created_at: float = 0.0
    updated_at: float = 0.0
    previous_version: int = 0
    """The version that the plain name meant before; 0: none."""
    shared: bool = False
    """Whether all tenants may use it, or one of its versions."""


@dataclass(frozen=True, slots=True)
class ComposeRequest:
    """A stack to merge into the next version of ``name``; None leaves a setting to its default."""

    name: str = ""
    adapters: tuple[StackItem, ...] = ()
    method: ComposeMethod = ComposeMethod.CAT
    rank: int | None = None
    density: float | None = None
    seed: int | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    principal: Principal = field(kw_only=True)


@dataclass(frozen=True, slots=True)
class Download:
    """A version on its way out: its files in the order in which their pieces come."""

    version: VersionRecord
    files: tuple[FileSpec, ...]
    chunks: AsyncIterator[tuple[str, bytes]]
    """(file name, next bytes of it), at most 1 MiB each. DATA_LOSS before the last of a file that is damaged."""
    lost: tuple[str, ...] = ()
    """Files that the store has lost; nothing is computed with them."""
