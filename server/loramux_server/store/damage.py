"""Counts what of the stored content was found damaged, by kind."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum


class Kind(StrEnum):
    """What can be damaged."""

    ADAPTER = "adapter"
    DATASET = "dataset"
    CHECKPOINT = "checkpoint"
    BASE = "base"


class DamageCount:
    """Tells one listener of each finding. Thread-safe if the listener is."""

    def __init__(self) -> None:
        self.listener: Callable[[Kind], object] = lambda kind: None

    def found(self, kind: Kind) -> None:
        """Something of this kind was found damaged."""
        self.listener(kind)
