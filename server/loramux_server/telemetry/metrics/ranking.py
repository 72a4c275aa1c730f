"""The keys that are used most, found in bounded memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

CANDIDATES = 4
"""For each place, keys without one whose use is remembered."""
AHEAD = 1.25
"""By how much a key must be used more to take another's place: equals would change places all the time."""
HALF_LIFE = 3600.0
"""Seconds after which a use counts half."""


class Ranking(Generic[K]):
    """Has places for ``limit`` keys: the first ones, until others are used more.

    Places change hands only in :meth:`settle`. The use of keys without a place is counted as Misra and Gries do: what
    is used often is always among the candidates, however many other keys there are, and is never overrated.
    """

    def __init__(self, limit: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = limit
        self._clock = clock
        self._aged = clock()
        self._placed: dict[K, float] = {}
        self._candidates: dict[K, float] = {}

    def __contains__(self, key: K) -> bool:
        """Whether it has a place."""
        return key in self._placed

    def __iter__(self) -> Iterator[K]:
        """The keys that have a place."""
        return iter(self._placed)

    def use(self, key: K) -> None:
        """Count a use. The key gets a place at once if one is free."""
        if key in self._placed or len(self._placed) < self._limit:
            self._placed[key] = self._placed.get(key, 0.0) + 1
            return
        self._candidates[key] = self._candidates.get(key, 0.0) + 1
        if len(self._candidates) > CANDIDATES * self._limit:
            median = sorted(self._candidates.values())[len(self._candidates) // 2]
            self._candidates = {key: used - median for key, used in self._candidates.items() if used > median}

    def forget(self, which: Callable[[K], bool]) -> None:
        """Forget keys, and free the places that they have."""
        for uses in (self._placed, self._candidates):
            for key in [key for key in uses if which(key)]:
                del uses[key]

    def settle(self) -> list[K]:
        """Give places to candidates that are used more than those who have them; gives these candidates."""
        self._age()
        least = sorted(self._placed, key=self._placed.__getitem__)
        most = sorted(self._candidates, key=self._candidates.__getitem__, reverse=True)
        free = self._limit - len(least)
        winners = most[:free]
        for winner, loser in zip(most[free:], least, strict=False):
            if self._candidates[winner] <= AHEAD * self._placed[loser]:
                break
            self._candidates[loser] = self._placed.pop(loser)
            winners.append(winner)
        for winner in winners:
            self._placed[winner] = self._candidates.pop(winner)
        return winners

    def _age(self) -> None:
        halvings = int((self._clock() - self._aged) / HALF_LIFE)
        if halvings:
            self._aged += halvings * HALF_LIFE
            for uses in (self._placed, self._candidates):
                for key in uses:
                    uses[key] /= 2.0 ** min(halvings, 1000)
