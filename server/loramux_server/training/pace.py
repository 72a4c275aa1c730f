"""How much a piece of training takes: batches are split so that a piece fits the time that serving leaves."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

MAX_TOKENS = 4096
"""Most tokens of a piece: what one forward and backward may hold in memory."""
IDLE_SECONDS = 0.5
"""A piece when nobody waits aims at this, because somebody who comes then waits for its end."""
IDLE_TOKENS = 512
"""But it is no smaller than this: below, what a pass costs whatever its size makes training slower. Measured on two
processor cores with the default base: 1,024 tokens in pieces of 1,024: 6.12 s; of 512: 6.15; 256: 6.7; 128: 7.8."""


class Pace:
    """Splits batches by the measured speed. ``seconds`` None: nobody waits."""

    def __init__(self) -> None:
        self.seconds: float | None = None
        self._rate: float | None = None  # tokens a second, of the recent pieces
        self._limit: int | None = None  # since memory ran out

    @property
    def room(self) -> int:
        """Most tokens of the next piece."""
        room = MAX_TOKENS if self._limit is None else self._limit
        if self.seconds is None:
            return min(room, max(IDLE_TOKENS, int((self._rate or 0.0) * IDLE_SECONDS)))
        # The first piece under a limit is small, because nothing has been measured yet.
        return min(room, int(self._rate * self.seconds)) if self._rate else 64

    def split(self, batch: Sequence[int], lengths: Sequence[int], most: int | None = None) -> Iterator[list[int]]:
        """Consecutive parts of ``batch``, each at least one row. The limit is looked up anew for every part."""
        left = list(batch)
        while left:
            count, room = 1, self.room
            while count < min(len(left), most or len(left)) and sum(lengths[i] for i in left[: count + 1]) <= room:
                count += 1
            yield left[:count]
            del left[:count]

    @contextmanager
    def measure(self, tokens: int) -> Iterator[None]:
        """Time a piece of ``tokens`` tokens."""
        started = time.monotonic()
        yield
        rate = tokens / max(time.monotonic() - started, 1e-6)
        self._rate = rate if self._rate is None else 0.7 * self._rate + 0.3 * rate

    def shrink(self, tokens: int) -> None:
        """Memory ran out: pieces have at most ``tokens`` tokens from now on."""
        self._limit = tokens
