"""What the adapter services take and answer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from ...core.compose import ComposeMethod
from ...core.principal import Principal
from ...core.types import StackItem
from ...store.records import Composition
from ..common.types import FileSpec


@dataclass(frozen=True, slots=True)
class AdapterVersionInfo:
    """One adapter version. Times in seconds since 1970, as everywhere here."""

    name: str
    version: int
    digest: str
    rank: int
    alpha: float
    rslora: bool
    target_modules: tuple[str, ...]
    """Kinds of linears it changes (``q_proj``)."""
    size_bytes: int
    layers: tuple[int, ...] = ()
    """Decoder layers it changes; empty: all."""
    base_name: str = ""
    base_fingerprint: str = ""
    created_at: float = 0.0
    state: str = "ready"
    """``ready``, ``quarantined`` or ``deleted``."""
    state_reason: str = ""
    job_id: str = ""
    gate_result: str = ""
    """Why the gate of its job did not promote it; empty: it did, or there was none."""
    dataset_digest: str = ""
    parent: str = ""
    for_other_base: bool = False
    """Whether it was made for another base than the server has, and so cannot be used."""
    warnings: tuple[str, ...] = ()
    """What does not keep it from being served, but may not be meant."""
    asked_with: str = ""
    """``messages`` or ``prompt``: how the rows that it learned from are asked; empty: not known."""
    trained_on: tuple[tuple[StackItem, ...], ...] = ()
    composed: Composition | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    tier: str = "disk"
    """Fastest place it is in now: ``device``, ``host`` or ``disk``."""
    pinned: bool = False
    last_used_at: float = 0.0
    """0: never."""

    @property
    def ref(self) -> str:
        """``name@version``."""
        return f"{self.name}@{self.version}"


@dataclass(frozen=True, slots=True)
class AdapterInfo:
    """A name and the versions behind it."""

    name: str
    tenant: str
    current: AdapterVersionInfo | None
    """The version that the plain name means; None: none is usable."""
    versions: tuple[AdapterVersionInfo, ...] = ()
    """Newest first; empty in lists."""
    aliases: dict[str, int] = field(default_factory=dict)
    created_at: float = 0.0
    updated_at: float = 0.0
    previous_version: int = 0
    """The version that the plain name meant before; 0: none."""


@dataclass(frozen=True, slots=True)
class ComposeRequest:
    """A stack to merge into the next version of ``name``; None leaves a setting to its default."""

    name: str
    adapters: tuple[StackItem, ...]
    method: ComposeMethod = ComposeMethod.CAT
    rank: int | None = None
    density: float | None = None
    seed: int | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    principal: Principal = field(kw_only=True)


@dataclass(frozen=True, slots=True)
class Download:
    """A version on its way out: its files in the order in which their pieces come."""

    version: AdapterVersionInfo
    files: tuple[FileSpec, ...]
    chunks: AsyncIterator[tuple[str, bytes]]
    """(file name, next bytes of it), at most 1 MiB each. DATA_LOSS before the last of a file that is damaged."""
    lost: tuple[str, ...] = ()
    """Files that the store has lost; nothing is computed with them."""
