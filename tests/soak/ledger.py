"""What the server acknowledged, and what went wrong. One loop writes it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import loramux

FINE = {"UNAVAILABLE", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED", "CANCELLED"}
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

    def note(self, what: str, error: loramux.LoramuxError | None, *also: str) -> None:
        """Count how a call ended. Beside the fine codes, ``also`` may be its end."""
        code = "OK" if error is None else error.code
        self.counts[f"{what}: {code}"] += 1
        if error is not None and code not in FINE and code not in also:
            self.violate(f"{what} ended with {code}: {error}")

    def violate(self, what: str) -> None:
        """Something that must never happen happened."""
        self.violations.append(what)
