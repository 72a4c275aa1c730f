"""What tenants used."""

from __future__ import annotations

from dataclasses import dataclass

DIMENSIONS = ("day", "tenant", "adapter", "method")
"""What usage can be grouped by, in the order of the rows."""


@dataclass(frozen=True, slots=True)
class UsageRow:
    """What was used within a group. Dimensions that are not grouped by are empty. Sums over rows are totals."""

    day: str = ""
    """``YYYY-MM-DD`` of UTC."""
    tenant: str = ""
    adapter: str = ""
    """The adapter, a stack such as ``acme+json`` (names in alphabetical order), or ``base``."""
    method: str = ""
    """generate, score, embed, train or store."""
    requests: int = 0
    input_tokens: int = 0
    """Tokens that the model read, ``cached_tokens`` included."""
    cached_tokens: int = 0
    output_tokens: int = 0
    trained_tokens: int = 0
    adapter_hours: float = 0.0
    """Hours of adapter versions stored: two versions for three hours are six."""
