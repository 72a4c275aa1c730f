"""Adapters and their versions."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..comparison import Comparison, read_comparison


@dataclass(frozen=True, slots=True)
class StackItem:
    """An adapter reference (``name``, ``name@version``) and the weight of its delta."""

    adapter: str
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Composition:
    """How a version was merged: the stack with its versions, the method, and the settings that the method takes."""

    method: str
    """``cat``, ``svd``, ``linear``, ``ties``, ``dare_ties`` or ``magnitude_prune``."""
    stack: tuple[StackItem, ...]
    error: float
    """Frobenius norm of what the merged delta misses of the stack's sum, relative to that sum; 0 is exact."""
    rank: int | None = None
    density: float | None = None
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class AdapterVersion:
    """One published version of an adapter."""

    name: str
    version: int
    digest: str
    rank: int = 0
    alpha: float = 0.0
    rslora: bool = False
    target_modules: tuple[str, ...] = ()
    layers: tuple[int, ...] = ()
    """Decoder layers that it changes; empty: all."""
    size_bytes: int = 0
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
    trained_on: tuple[tuple[StackItem, ...], ...] = ()
    asked_with: str = ""
    """``messages`` or ``prompt``: how the rows that it learned from are asked; empty: not known."""
    for_other_base: bool = False
    """Whether it was made for another base than the server has, and so cannot be used there."""
    warnings: tuple[str, ...] = ()
    """What does not keep it from being served, but may not be meant."""
    composed: Composition | None = None
    """Set when it was merged from other versions."""
    metrics: dict[str, float] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    tier: str = "disk"
    """Where its weights are: ``device``, ``host`` or ``disk``."""
    pinned: bool = False
    shared: bool = False
    """Whether all tenants may use it."""
    last_used_at: float = 0.0

    @property
    def ref(self) -> str:
        """``name@version``."""
        return f"{self.name}@{self.version}"

    @property
    def comparison(self) -> Comparison | None:
        """How it did against a prompt on the held-out rows; None if that was not measured."""
        return read_comparison(self.metrics)


@dataclass(frozen=True, slots=True)
class Adapter:
    """A name and the versions behind it."""

    name: str
    tenant: str = ""
    """Its owner; empty: it is shared by all."""
    current: AdapterVersion | None = None
    """The version that the plain name means; None: none is usable."""
    versions: tuple[AdapterVersion, ...] = ()
    """Newest first; empty in lists."""
    aliases: dict[str, int] = field(default_factory=dict)
    previous_version: int = 0
    """The version that the plain name meant before it moved, to roll back to; 0: none."""
    shared: bool = False
    """Whether all tenants may use it, or one of its versions."""
    created_at: float = 0.0
    updated_at: float = 0.0
