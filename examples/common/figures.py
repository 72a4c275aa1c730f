"""Figures of a report, each with its standard error."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import msgspec


class Share(msgspec.Struct, frozen=True, tag="share"):
    """How many of so many answers are right."""

    hits: int
    of: int

    @property
    def value(self) -> float:
        """The share; 0 of nothing."""
        return self.hits / self.of if self.of else 0.0

    @property
    def error(self) -> float:
        """Standard error of the share, as in a job's comparison: two rows of either kind are added (Agresti, Coull)."""
        share = (self.hits + 2) / (self.of + 4)
        return math.sqrt(share * (1 - share) / (self.of + 4))

    def __str__(self) -> str:
        return f"{self.hits}/{self.of} ({self.value:.1%} ± {self.error:.1%})" if self.of else "none"

    def __add__(self, other: Share) -> Share:
        return Share(self.hits + other.hits, self.of + other.of)


class Number(msgspec.Struct, frozen=True, tag="number"):
    """A measured number, in the unit that its column names."""

    value: float
    error: float | None = None
    """Standard error of the mean; None: a count, or measured once."""
    digits: int = 1

    def __str__(self) -> str:
        error = "" if self.error is None else f" ± {self.error:.{self.digits}f}"
        return f"{self.value:.{self.digits}f}{error}"


Figure = Share | Number


def share(right: Iterable[bool]) -> Share:
    """The share of what is true."""
    judged = list(right)
    return Share(sum(judged), len(judged))


def mean(values: Sequence[float], digits: int = 1) -> Number:
    """The mean of at least one value, with its standard error from two values on."""
    middle = sum(values) / len(values)
    if len(values) < 2:
        return Number(middle, digits=digits)
    variance = sum((value - middle) ** 2 for value in values) / (len(values) - 1)
    return Number(middle, math.sqrt(variance / len(values)), digits)
