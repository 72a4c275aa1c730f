"""Refused calls that come in a storm: some have a line of their own, the others are counted."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable

WINDOW = 10.0
"""Seconds after which lines are counted anew."""
MOST = 20
"""Lines in a window for each tenant and reason. They are enough to see who it is, and a disk can hold them."""

Untold = Callable[[str, str, int], None]
"""Told at the end of a window: of which tenant, for which reason, and how many had no line."""


class Storms:
    """Counts by tenant and reason. Belongs to one event loop; unknown callers are one tenant."""

    def __init__(self, tell: Untold) -> None:
        self._tell = tell
        self._counts: Counter[tuple[str, str]] = Counter()
        self._end: asyncio.TimerHandle | None = None

    def lets(self, tenant: str, reason: str) -> bool:
        """Count a refused call; whether it has a line."""
        if self._end is None:
            self._end = asyncio.get_running_loop().call_later(WINDOW, self.close)
        self._counts[tenant, reason] += 1
        return self._counts[tenant, reason] <= MOST

    def close(self) -> None:
        """End the window: tell of those that had no line."""
        if self._end is not None:
            self._end.cancel()
            self._end = None
        counts, self._counts = self._counts, Counter()
        for (tenant, reason), count in counts.items():
            if count > MOST:
                self._tell(tenant, reason, count - MOST)
