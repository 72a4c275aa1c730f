"""What servers of one database tell each other about the quotas of calls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from .quota import Limit


class Counts(NamedTuple):
    """Calls of a subject at a server, or at several."""

    running: int = 0
    waiting: int = 0

    def plus(self, other: Counts) -> Counts:
        """Those of both."""
        return Counts(self.running + other.running, self.waiting + other.waiting)


@dataclass(frozen=True, slots=True)
class Taken:
    """What a server took from the bucket of a subject since it told the others last. Amounts are requests or tokens."""

    subject: str
    rate: Limit
    per_minute: int
    """How fast it flows back."""
    taken: float
    """Without what was given back; below 0: more came back than was taken."""
    least: float
    """What is in use of it even if the bucket was full before."""
    used: float
    """All that the server knows to be in use: the level where the database has none."""


@dataclass(frozen=True, slots=True)
class News:
    """What a server tells."""

    counts: Mapping[str, Counts]
    """By subject; those without calls are left out."""
    taken: tuple[Taken, ...] = ()


@dataclass(frozen=True, slots=True)
class Level:
    """What is in use of a bucket over all servers."""

    subject: str
    rate: Limit
    used: float
    age: float
    """Seconds since it was so much; it flows back from then on."""


@dataclass(frozen=True, slots=True)
class Heard:
    """What a server hears of the others."""

    now: float
    """By the database's clock."""
    servers: int
    """Other servers that live."""
    counts: Mapping[str, Counts]
    """Their calls, by subject."""
    levels: tuple[Level, ...]
    """Buckets that anybody took from lately."""
