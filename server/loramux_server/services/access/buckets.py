"""Token buckets: what a limit grants flows back evenly, a minute's worth at most.

So a caller that waits the seconds it is told gets in, and no minute begins with a stampede. Times are seconds on a
monotonic clock.
"""

from __future__ import annotations

APART_SECONDS = 5.0
"""What was taken without telling others for longer, as while the database was away, is not summed up any more."""


class Bucket:
    """What is in use of a rate: taken, and not flowed back."""

    def __init__(self, per_minute: int, now: float) -> None:
        self.size = per_minute
        self._used, self._at = 0.0, now

    def used(self, now: float) -> float:
        """What is in use now."""
        self._used = max(0.0, self._used - (now - self._at) * self.size / 60.0)
        self._at = now
        return self._used

    def wait(self, amount: int, now: float) -> float:
        """Seconds until ``amount`` can be taken; 0: now."""
        missing = self.used(now) + amount - self.size
        return missing * 60.0 / max(self.size, 1) if missing > 1e-9 else 0.0

    def take(self, amount: float, now: float) -> None:
        """Take an amount, or give one back (below 0)."""
        self._used = max(0.0, self.used(now) + amount)

    def resize(self, per_minute: int, now: float) -> None:
        """Another limit from now on; what is used stays used."""
        self.used(now)
        self.size = per_minute

    def fill(self, used: float, now: float) -> None:
        """Put so much in use, whatever was."""
        self._used, self._at = used, now


class Own:
    """What this server did to a bucket that others take from too, and has not told them.

    Taking and giving back, in any order, turn what was in use into ``max(least, used + taken)``. So what several
    servers did is put together without their calls one by one, and what flows back meanwhile does so once.
    """

    def __init__(self, per_minute: int, now: float) -> None:
        self.since = now
        self._taken, self._least = 0.0, Bucket(per_minute, now)

    def take(self, amount: float, now: float) -> None:
        """Take an amount, or give one back (below 0)."""
        self._taken += amount
        self._least.take(amount, now)

    def resize(self, per_minute: int, now: float) -> None:
        """Another limit from now on."""
        self._least.resize(per_minute, now)

    def sums(self, known: float, now: float) -> tuple[float, float]:
        """``taken`` and ``least``; ``known`` is what this server takes to be in use, of its own and of others."""
        least = self._least.used(now)
        if now - self.since <= APART_SECONDS:
            return self._taken, least
        # Long apart, a server grants all that flows back, as does each other: of what it took, only what is in use now
        # is told then. What it gave back beyond that was taken before, and is in use by nobody.
        return min(self._taken, least), known

    def follow(self, earlier: Own, now: float) -> None:
        """Put what was done earlier, and could not be told, before this."""
        self._least.fill(max(self._least.used(now), earlier._least.used(now) + self._taken), now)
        self._taken += earlier._taken
        self.since = earlier.since


class SharedBucket(Bucket):
    """A bucket that other servers take from too: this server's copy, and what it has not told them."""

    def __init__(self, per_minute: int, now: float) -> None:
        super().__init__(per_minute, now)
        self._own: Own | None = None

    def take(self, amount: float, now: float) -> None:
        super().take(amount, now)
        if self._own is None:
            self._own = Own(self.size, now)
        self._own.take(amount, now)

    def resize(self, per_minute: int, now: float) -> None:
        super().resize(per_minute, now)
        if self._own is not None:
            self._own.resize(per_minute, now)

    def sums(self, now: float) -> tuple[float, float]:
        """``taken`` and ``least`` of what the others have not been told."""
        known = self.used(now)
        return (0.0, 0.0) if self._own is None else self._own.sums(known, now)

    def tell(self) -> Own | None:
        """What is to be told to the others, if anything is; what comes from now on is for the next time."""
        own, self._own = self._own, None
        return own

    def put_back(self, own: Own, now: float) -> None:
        """What :meth:`tell` gave could not be told."""
        if self._own is not None:
            self._own.follow(own, now)
            own = self._own
        self._own = own

    def hear(self, used: float, now: float) -> None:
        """What is in use over all servers, without what this one has not told."""
        taken, least = self.sums(now)
        self.fill(max(least, used + taken), now)

    def idle(self, now: float) -> bool:
        """Whether nothing would be lost by forgetting it."""
        return self.used(now) <= 0 and self.sums(now) == (0.0, 0.0)
