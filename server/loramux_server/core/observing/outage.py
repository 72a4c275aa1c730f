"""How often a failure that goes on is told: once, then at growing intervals, and once when it is over."""

from __future__ import annotations

import time
from collections.abc import Callable

FIRST, MOST = 10.0, 600.0
"""Seconds until it is told a second time; doubled each time, up to the other."""


class Outage:
    """One kind of failure, whoever meets with it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.failures = 0
        """Of the present outage."""
        self._clock = clock
        self._began = self._next = 0.0
        self._wait = FIRST

    def failed(self) -> bool:
        """Note a failure; whether it is to be told."""
        now = self._clock()
        self.failures += 1
        if self.failures == 1:
            self._began, self._next, self._wait = now, now + FIRST, FIRST
            return True
        if now < self._next:
            return False
        self._wait = min(2 * self._wait, MOST)
        self._next = now + self._wait
        return True

    def over(self) -> float | None:
        """Note a success; the seconds that the outage lasted, if there was one."""
        if not self.failures:
            return None
        self.failures = 0
        return self._clock() - self._began
