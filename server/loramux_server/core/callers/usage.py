"""What tenants used, as a bill has it: amounts by day, tenant, adapter and method."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from datetime import UTC, date, datetime
from enum import StrEnum
from typing import Self

_WORD = re.compile(r"[!-~]{1,640}", re.ASCII)


class UsageMethod(StrEnum):
    """What was used."""

    GENERATE = "generate"
    SCORE = "score"
    EMBED = "embed"
    TRAIN = "train"
    STORE = "store"
    """Adapter versions were stored."""


class Dimension(StrEnum):
    """What usage can be grouped by, in the order of the rows."""

    DAY = "day"
    TENANT = "tenant"
    ADAPTER = "adapter"
    METHOD = "method"


@dataclass(frozen=True, slots=True)
class UsageKey:
    """To whom and to what an amount belongs. Each use has exactly one key, so sums over keys are totals."""

    day: str
    """``YYYY-MM-DD`` of UTC."""
    tenant: str
    adapter: str
    """The stack as metrics label it: names in alphabetical order, joined by ``+``; ``base`` without adapters."""
    method: UsageMethod


@dataclass(frozen=True, slots=True)
class Amounts:
    """How much was used."""

    requests: int = 0
    input_tokens: int = 0
    """Tokens that the model read, those from the prefix cache included."""
    cached_tokens: int = 0
    output_tokens: int = 0
    trained_tokens: int = 0

    def __add__(self, other: Self) -> Self:
        return type(self)(*(getattr(self, name) + getattr(other, name) for name in AMOUNTS))


AMOUNTS = tuple(field.name for field in fields(Amounts))
UsageByKey = Mapping[UsageKey, Amounts]


@dataclass(frozen=True, slots=True)
class UsageRow:
    """What was used within a group. Dimensions that the rows are not grouped by are empty."""

    day: str = ""
    tenant: str = ""
    adapter: str = ""
    method: str = ""
    requests: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    trained_tokens: int = 0
    adapter_hours: float = 0.0
    """Hours of adapter versions stored: two versions for three hours are six."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageQuery:
    """Which usage, and how it is grouped. Days are those of UTC."""

    since: date
    until: date
    """The first day that is left out."""
    group_by: tuple[Dimension, ...]
    tenants: Collection[str] | None = None
    """None: all."""
    adapter: str = ""
    """Only rows of this adapter and of stacks with it; empty: all."""
    labels: Collection[str] | None = None
    """Only rows with one of these labels; None: all."""
    methods: Collection[UsageMethod] | None = None
    """None: all."""


def is_word(text: str) -> bool:
    """Whether a text can be a tenant or a label: no database is asked for anything else."""
    return _WORD.fullmatch(text) is not None


def day_of(at: float) -> str:
    """The day of UTC that a time, in seconds since the epoch, is in."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d")
