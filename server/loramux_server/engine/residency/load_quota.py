"""How many adapters each tenant may have read from disk per second: a bucket of tokens for each. No torch."""

from __future__ import annotations

import time
from collections.abc import Callable

BURST_SECONDS = 2.0
"""A tenant that was quiet may load at once what it would load in this time, at least one."""


class LoadQuota:
    """Buckets that fill at ``rate`` loads per second; 0: no limit."""

    def __init__(self, rate: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._clock = rate, clock
        self._burst = max(1.0, rate * BURST_SECONDS)
        self._buckets: dict[str, tuple[float, float]] = {}  # tenant -> (tokens, as of)

    def take(self, tenant: str) -> bool:
        """Take a load from a tenant's bucket, if there is one."""
        if not self._rate:
            return True
        left = self._left(tenant)
        if left >= 1:
            left -= 1
            self._buckets[tenant] = (left, self._clock())
            return True
        return False

    def wait(self, tenant: str) -> float:
        """Seconds until the tenant may load again."""
        return max(0.0, (1 - self._left(tenant)) / self._rate) if self._rate else 0.0

    def _left(self, tenant: str) -> float:
        now = self._clock()
        tokens, since = self._buckets.get(tenant, (self._burst, now))
        tokens = min(self._burst, tokens + (now - since) * self._rate)
        if len(self._buckets) > 10_000:  # full buckets are as good as none
            full = self._burst - 1
            self._buckets = {t: b for t, b in self._buckets.items() if b[0] + (now - b[1]) * self._rate < full}
        return tokens
