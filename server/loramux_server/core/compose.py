"""Merging a stack into one adapter: what is asked for, and what came out."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from .types import Stack


class ComposeMethod(StrEnum):
    """How a stack is merged. Only CAT is exact; SVD is the best of its rank; the rest are PEFT's approximations."""

    CAT = "cat"
    SVD = "svd"
    LINEAR = "linear"
    TIES = "ties"
    DARE_TIES = "dare_ties"
    MAGNITUDE_PRUNE = "magnitude_prune"

    @property
    def takes_density(self) -> bool:
        """Whether it drops a share of the values."""
        return self in (ComposeMethod.TIES, ComposeMethod.DARE_TIES, ComposeMethod.MAGNITUDE_PRUNE)


@dataclass(frozen=True, slots=True)
class ComposeCommand:
    """All that is needed to merge a stack: no names to look up, no files but those that its digests name."""

    stack: Stack
    method: ComposeMethod
    blobs: str
    """Folder with the adapters' files by digest, as a ``BlobReader`` takes it."""
    output: str
    """Folder to make and fill with the adapter in PEFT's format."""
    modules: dict[str, tuple[int, int]]
    """The base's linears: name -> (in_features, out_features)."""
    base_name: str = ""
    base_fingerprint: str = ""
    rank: int | None = None
    """For SVD; None: the largest rank of the stack."""
    density: float = 0.5
    """Share of the values that the pruning methods keep, in (0, 1]."""
    seed: int = 0
    """For DARE_TIES."""
    max_rank: int = 256


@dataclass(frozen=True, slots=True)
class ComposeResult:
    """``error`` is the Frobenius norm of what the merged delta misses, over all modules, relative to the stack's."""

    error: float
