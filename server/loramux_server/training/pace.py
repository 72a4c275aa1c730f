"""How much a piece of training takes: batches are split so that a piece fits the time that serving leaves."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

MAX_TOKENS = 4096
"""Most tokens of a piece when nobody waits: what one forward and backward may hold in memory."""


class Pace:
    """Splits batches by the measured speed. ``seconds`` None: no limit but memory."""

    def __init__(self) -> None:
        self.seconds: float | None = None
        self._rate: float | None = None  # tokens a second, of the recent pieces
        self._tokens = 0  # of the piece in progress
        self._limit: int | None = None  # most tokens of a piece, since memory ran out

    def split(self, batch: Sequence[int], lengths: Sequence[int], most: int | None = None) -> Iterator[list[int]]:
        """Consecutive parts of ``batch``, each at least one row. The limit is looked up anew for every part."""
        left = list(batch)
        while left:
            room = MAX_TOKENS if self._limit is None else self._limit
            if self.seconds is not None:
                # The first piece under a limit is small, because nothing has been measured yet.
                room = min(room, int(self._rate * self.seconds)) if self._rate else 64
            count = 1
            while count < min(len(left), most or len(left)) and sum(lengths[i] for i in left[: count + 1]) <= room:
                count += 1
            yield left[:count]
            del left[:count]

    @contextmanager
    def measure(self, tokens: int) -> Iterator[None]:
        """Time a piece of ``tokens`` tokens."""
        self._tokens = tokens
        started = time.monotonic()
        yield
        rate = tokens / max(time.monotonic() - started, 1e-6)
        self._rate = rate if self._rate is None else 0.7 * self._rate + 0.3 * rate

    def shrink(self) -> bool:
        """Memory ran out: pieces are half as large from now on. False if they were made smaller before."""
        if self._limit is not None:
            return False
        self._limit = max(1, self._tokens // 2)
        return True
