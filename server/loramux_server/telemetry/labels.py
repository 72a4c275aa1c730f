"""Bounded label values: what clients name must never decide how many time series there are."""

from __future__ import annotations

from collections.abc import Iterable

OTHER = "_other"
"""No name of an adapter or a tenant begins with an underscore."""
BARE = "base"
"""The stack of nothing but the base. No adapter may be published under this name."""


class BoundedLabels:
    """The first ``limit`` distinct values keep their own label; later ones share ``_other``."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._known: set[str] = set()

    def __call__(self, value: str) -> str:
        if value not in self._known:
            if len(self._known) >= self._limit:
                return OTHER
            self._known.add(value)
        return value

    def forget(self, value: str) -> None:
        """Make room for another value; no series has this one any more."""
        self._known.discard(value)


def stack_label(names: Iterable[str]) -> str:
    """One value for a whole stack (``acme+formal``, ``base`` for none), so that sums over adapters stay right."""
    return "+".join(names) or BARE
