"""What the server acknowledged, and what went wrong. One loop writes it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

FINE = {"OK", "UNAVAILABLE", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED", "CANCELLED"}
"""Codes that a good request may get here: the engine is killed, quotas are low, deadlines short."""


@dataclass
class Ledger:
    """Shared by all that put load on the server."""

    adapters: dict[tuple[str, str], dict[int, str]] = field(default_factory=dict)
    """(tenant, name) -> version -> digest."""
    datasets: dict[str, set[str]] = field(default_factory=dict)
    """Tenant -> ids."""
    jobs: dict[str, str] = field(default_factory=dict)
    """Job id -> tenant."""
    counts: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)

    def note(self, what: str, code: str = "OK", *also: str, said: object = "") -> None:
        """Count how a call ended, and what its error ``said``. Beside the fine codes, ``also`` may be its end."""
        self.counts[f"{what}: {code}"] += 1
        if code not in FINE and code not in also:
            self.violate(f"{what} ended with {code}: {said}")

    def violate(self, what: str) -> None:
        """Something that must never happen happened."""
        self.violations.append(what)
