"""The fronts that a replica works for. Pure: no Ray, no clock."""

from __future__ import annotations

FRONT_SECONDS = 20.0
"""A front that has not been heard of for so long is dead: what it asked for is aborted, before its leases end."""


def front_id(server: str, start: str) -> str:
    """What a front is called: ``server`` is the same in each of its starts, ``start`` is not."""
    return f"{server}.{start}"


class Fronts:
    """Which fronts live, by when each was heard of last. Times are seconds."""

    def __init__(self) -> None:
        self._heard: dict[str, float] = {}

    def hear(self, front: str, now: float) -> None:
        """A front called: it lives, and wants what it asked for."""
        self._heard[front] = now

    def leave(self, front: str, now: float) -> int:
        """Forget a front that stops; gives how many others live."""
        self._heard.pop(front, None)
        return len(self._heard) - len(self._silent(now))

    def earlier(self, front: str) -> frozenset[str]:
        """Forget the earlier starts of the same server, which are over; gives which there were."""
        server = front.partition(".")[0]
        return self._forget({other for other in self._heard if other != front and other.partition(".")[0] == server})

    def dead(self, now: float) -> frozenset[str]:
        """Forget those that have been silent for ``FRONT_SECONDS``; gives which they were."""
        return self._forget(self._silent(now))

    def _silent(self, now: float) -> set[str]:
        return {front for front, heard in self._heard.items() if now - heard > FRONT_SECONDS}

    def _forget(self, fronts: set[str]) -> frozenset[str]:
        for front in fronts:
            del self._heard[front]
        return frozenset(fronts)
