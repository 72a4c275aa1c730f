"""Which adapters are read from disk next, and which stay in host memory until those who wait have had their turn.

Reads begin in the order in which the adapters were first asked for. What a read brings is claimed by the requests
that wait for it by then: the host cache does not drop it before each of them has started or left. A read begins only
while what is claimed leaves capacity for it, so that requests for more adapters than fit in host memory make each
other wait and never evict each other's adapters. Requests that come later have no part in a claim, so a popular
adapter cannot keep the others out.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from ...core.types import AdapterVersion
from .cache import HostCache
from .load_quota import LoadQuota

READ_AHEAD = 4
"""Reads under way at once: they are done one after another, and the next must not wait for a turn of the loop."""


@dataclass(slots=True)
class _Want:
    """An adapter that is to be read. ``paid``: a tenant's quota has been charged, or none is."""

    adapter: AdapterVersion
    waiters: set[str] = field(default_factory=set)
    tenants: set[str] = field(default_factory=set)
    paid: bool = False
    urgent: bool = False  # an operator asked for it: at once, whatever the capacity
    reading: bool = False


class ReadQueue:
    """Reads for waiting requests, which are known by their ids.

    ``nbytes(adapter)`` is the most that an adapter may take in host memory. ``stuck()`` tells whether none of the
    waiting has all that it needs: then a read begins though it does not fit, or nothing would ever start.
    """

    def __init__(
        self,
        cache: HostCache,
        quota: LoadQuota,
        nbytes: Callable[[AdapterVersion], int],
        stuck: Callable[[], bool],
    ) -> None:
        self.quota = quota
        self._cache, self._nbytes, self._stuck = cache, nbytes, stuck
        self._wanted: OrderedDict[str, _Want] = OrderedDict()
        self.claims: dict[str, set[str]] = {}
        """Digests in host memory -> requests that have yet to start with them: these must stay there."""

    def __len__(self) -> int:
        """Reads that are wanted and have not begun."""
        return sum(not want.reading for want in self._wanted.values())

    def want(self, adapter: AdapterVersion, waiter: str, tenant: str | None) -> None:
        """``waiter`` needs an adapter that is not in memory. Its tenant's quota is charged; None: it has paid before.

        Asking again does nothing.
        """
        want = self._wanted.setdefault(adapter.digest, _Want(adapter))
        if waiter in want.waiters:
            return
        want.waiters.add(waiter)
        if want.paid or tenant is None or self.quota.take(tenant):
            want.paid = True
        else:
            want.tenants.add(tenant)

    def hurry(self, adapter: AdapterVersion) -> None:
        """An operator wants the adapter: it is read next, and nobody's quota is charged."""
        want = self._wanted.setdefault(adapter.digest, _Want(adapter))
        want.paid = want.urgent = True
        self._wanted.move_to_end(adapter.digest, last=False)

    def release(self, waiter: str, digests: Iterable[str]) -> None:
        """``waiter`` has started or left. What nobody waits for any more is not read, and not claimed."""
        for digest in digests:
            if (want := self._wanted.get(digest)) is not None:
                want.waiters.discard(waiter)
                if not (want.waiters or want.urgent or want.reading):
                    del self._wanted[digest]
            if (claim := self.claims.get(digest)) is not None:
                claim.discard(waiter)
                if not claim:
                    del self.claims[digest]

    def came(self, digest: str) -> None:
        """An adapter left the device for host memory: those who wait for it hear of it as of a read, however full."""
        want = self._wanted.get(digest)
        if want is not None and not want.reading:
            want.reading = True
            self._cache.request(want.adapter)

    def ended(self, digest: str) -> None:
        """A read ended: those who wait for it now claim it."""
        want = self._wanted.pop(digest, None)
        if want is not None and want.waiters:
            self.claims.setdefault(digest, set()).update(want.waiters)

    def begin(self) -> float | None:
        """Start the reads that may start; seconds until a quota lets the next one, None if none waits for that."""
        waits: list[float] = []
        reading = sum(want.reading for want in self._wanted.values())
        for want in [want for want in self._wanted.values() if not want.reading]:
            if not want.paid:
                if not any(self.quota.take(tenant) for tenant in want.tenants):
                    waits += [self.quota.wait(tenant) for tenant in want.tenants]
                    continue
                want.paid = True
            if not want.urgent and (reading >= READ_AHEAD or not self._fits(want)):
                break  # those behind it wait too: a small one must not pass a large one for ever
            want.reading = True
            reading += 1
            self._cache.request(want.adapter)
        return min(waits, default=None)

    def _fits(self, want: _Want) -> bool:
        coming = [w for w in self._wanted.values() if w.reading]
        taken = self._cache.size_of(self.claims) + sum(self._nbytes(w.adapter) for w in coming)
        return taken + self._nbytes(want.adapter) <= self._cache.budget or (not coming and self._stuck())
