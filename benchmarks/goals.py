"""What a figure has to reach, and whether it did."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Goal:
    """A measured figure beside its bound; both in the same unit."""

    what: str
    value: float
    bound: float
    at_most: bool = False
    """Whether the bound is the most that the figure may be, not the least."""
    percent: bool = False
    """Whether to write shares as percentages."""
    unit: str = "x"

    @property
    def met(self) -> bool:
        """Whether the figure keeps to its bound; one that is not a number never does."""
        return self.value <= self.bound if self.at_most else self.value >= self.bound

    def __str__(self) -> str:
        side = "at most" if self.at_most else "at least"
        return f"{self.what}: {self._write(self.value)} (goal: {side} {self._write(self.bound)}): {self._verdict()}"

    def _write(self, value: float) -> str:
        return f"{value:.1%}" if self.percent else f"{value:.2f}{self.unit}"

    def _verdict(self) -> str:
        return "met" if self.met else "NOT met"


def as_json(goals: Iterable[Goal]) -> list[dict[str, Any]]:
    """Goals as plain values."""
    return [{"what": g.what, "value": g.value, "bound": g.bound, "at_most": g.at_most, "met": g.met} for g in goals]
