"""What is expected to hold for a while: keys with a time of expiry, of which the oldest are forgotten first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)


class Expiring(Generic[Key]):
    """Keys, each for ``seconds`` after it was added last, and at most ``most`` of them. Times are seconds."""

    def __init__(self, seconds: float, most: int) -> None:
        self._seconds, self._most = seconds, most
        self._until: OrderedDict[Key, float] = OrderedDict()

    def add(self, keys: Iterable[Key], now: float) -> None:
        """Add keys; of those that are added together, the last one is forgotten last."""
        for key in keys:
            self._until[key] = now + self._seconds
            self._until.move_to_end(key)
        while self._until and (len(self._until) > self._most or next(iter(self._until.values())) <= now):
            self._until.popitem(last=False)

    def holds(self, key: Key, now: float) -> bool:
        return self._until.get(key, now) > now

    def __len__(self) -> int:
        return len(self._until)
