"""How much a piece of training takes: batches are split so that nothing runs on while somebody waits for long."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")

MAX_TOKENS = 4096
"""Most tokens of a piece: what one forward and backward may hold in memory."""
UNIT_SECONDS = 0.03
"""Beside requests, what runs without a pause (a layer of the backward) aims at this: they wait for its end."""
IDLE_SECONDS = 0.05
"""The same for what is done in a stretch when nobody is served; somebody may come."""
IDLE_PASS_SECONDS = 0.2
"""A piece takes this when nobody is served: a larger one is hardly more efficient, and its activations take memory."""
IDLE_TOKENS = 512
"""But it is no smaller than this: below, what a pass costs whatever its size makes training slower. Measured on two
processor cores with the default base: 1,024 tokens in pieces of 1,024: 6.12 s; of 512: 6.15; 256: 6.7; 128: 7.8.
"""


def activation_room(free: int, memory: int | None) -> int:
    """Bytes that a pass's activations may take before they are computed again: ``memory``, or a quarter of ``free``."""
    return free // 4 if memory is None else memory


class Pace:
    """Splits batches by the measured speed."""

    def __init__(self, units: float) -> None:
        """``units``: how many times as long as its largest unit a piece takes."""
        self.units = units
        self.serving = False
        """Whether requests are being served."""
        self._rate: float | None = None  # tokens a second, of the recent pieces
        self._limit: int | None = None  # since memory ran out

    @property
    def most(self) -> int:
        """Most tokens that memory has room for."""
        return MAX_TOKENS if self._limit is None else self._limit

    @property
    def room(self) -> int:
        """Tokens of the next piece."""
        if not self.serving:
            return min(self.most, max(IDLE_TOKENS, int((self._rate or 0.0) * IDLE_PASS_SECONDS)))
        # The first piece beside requests is small, because nothing has been measured yet.
        return max(1, min(self.most, int(self._rate * UNIT_SECONDS * self.units))) if self._rate else 64

    def split(self, batch: Sequence[int], lengths: Sequence[int], most: int | None = None) -> Iterator[list[int]]:
        """Consecutive parts of ``batch``, each at least one row. The limit is looked up anew for every part."""
        left = list(batch)
        while left:
            count, room = 1, self.room
            while count < min(len(left), most or len(left)) and sum(lengths[i] for i in left[: count + 1]) <= room:
                count += 1
            yield left[:count]
            del left[:count]

    def measure(self, tokens: int, work: Generator[None, None, T]) -> Generator[None, None, T]:
        """Do a piece of ``tokens`` tokens, timed without its pauses."""
        spent = 0.0
        while True:
            started = time.monotonic()
            try:
                next(work)
            except StopIteration as done:
                rate = tokens / max(spent + time.monotonic() - started, 1e-6)
                self._rate = rate if self._rate is None else 0.7 * self._rate + 0.3 * rate
                found: T = done.value
                return found
            spent += time.monotonic() - started
            yield

    def shrink(self, tokens: int) -> None:
        """Memory ran out: pieces have at most ``tokens`` tokens from now on."""
        self._limit = tokens
