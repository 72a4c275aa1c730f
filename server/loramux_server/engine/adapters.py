"""Brings the adapters of a stack to the device before a request starts, and lets go of them after."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence

from ..core.errors import Code, Error
from ..core.types import AdapterVersion, Stack
from ..lora.bank import AdapterBank, HostAdapter
from ..lora.cache import HostCache
from .load_quota import LoadQuota
from .scheduler import Admission


class AdapterDesk:
    """Between the scheduler's question "may this stack run now?" and bank, host cache and disk."""

    def __init__(self, bank: AdapterBank, cache: HostCache, quota: LoadQuota) -> None:
        self._bank, self._cache, self._quota = bank, cache, quota
        self._deferred: dict[str, tuple[AdapterVersion, str]] = {}  # digest -> read once this tenant may
        self._callers: dict[str, list[str]] = {}  # digest -> ids of load commands that wait for it
        self._doomed: set[str] = set()
        self._kept: dict[str, int] = {}  # digest -> rank of what is never evicted
        self._largest = 0  # rank of the largest adapter that was ever asked for
        self.hits: Counter[str] = Counter(device=0, host=0, disk=0)
        self._copies, self._copy_seconds = 0, 0.0

    def on_loaded(self, wake: Callable[[str], None]) -> None:
        """``wake(digest)`` is called from another thread when a read ends; the owner then calls :meth:`collect`."""
        self._cache.on_loaded = wake

    def check(self, *stacks: Stack) -> None:
        """Raise RESOURCE_EXHAUSTED for a stack that can never be resident at once."""
        for stack in stacks:
            needed = sum(e.adapter.rank for e in stack.entries if e.adapter.digest not in self._kept)
            room = self._bank.rows - sum(self._kept.values())
            if needed > room:
                beside = f" beside the {len(self._kept)} pinned adapters" if self._kept else ""
                raise Error(
                    Code.RESOURCE_EXHAUSTED,
                    f"the stack has rank {needed} in all and there is room for {room}{beside}; "
                    "use fewer or smaller adapters, or raise --adapter-memory",
                    reason="STACK_TOO_LARGE",
                )

    def keep(self, adapters: Sequence[AdapterVersion]) -> None:
        """Never evict these, and only these. RESOURCE_EXHAUSTED if the largest known adapter had no room beside."""
        kept = {adapter.digest: adapter.rank for adapter in adapters}
        largest = max([self._largest, *kept.values()])
        if kept and sum(kept.values()) + largest > self._bank.rows:
            raise Error(
                Code.RESOURCE_EXHAUSTED,
                f"the pinned adapters would have rank {sum(kept.values())} in all; of the {self._bank.rows} that there "
                f"is room for, {largest} must stay free for others: unpin some, or raise --adapter-memory",
                reason="TOO_MANY_PINNED",
            )
        self._kept = kept
        self._bank.kept = frozenset(kept)

    def prefetch(self, stack: Stack, tenant: str) -> None:
        """Start reading what is not in memory, so that it lands while the request queues: now, or when it may."""
        for entry in stack.entries:
            digest = entry.adapter.digest
            if self._bank.get(digest) is not None:
                self.hits["device"] += 1
                continue
            self.hits["disk" if self._cache.get(digest) is None else "host"] += 1
            if not self._cache.knows(digest) and not self._quota.take(tenant):
                self._deferred.setdefault(digest, (entry.adapter, tenant))
                continue
            self._deferred.pop(digest, None)
            self._cache.request(entry.adapter)

    def read_deferred(self) -> float | None:
        """Start the reads that had to wait and may begin now; seconds until the next may, None if none waits."""
        waits: list[float] = []
        for digest, (adapter, tenant) in list(self._deferred.items()):
            if self._quota.take(tenant):
                del self._deferred[digest]
                self._cache.request(adapter)
            else:
                waits.append(self._quota.wait(tenant))
        return min(waits, default=None)

    def pin(self, stack: Stack) -> Admission:
        """Make the whole stack resident and pin it, or pin nothing."""
        pinned: list[str] = []
        for entry in stack.entries:
            digest = entry.adapter.digest
            if (state := self._bring(entry.adapter)) is not Admission.READY:
                for other in pinned:
                    self._bank.unpin(other)
                return state
            self._bank.pin(digest)
            pinned.append(digest)
        return Admission.READY

    def unpin(self, stack: Stack) -> None:
        for entry in stack.entries:
            digest = entry.adapter.digest
            self._bank.unpin(digest)
            if digest in self._doomed and self._bank.drop(digest):
                self._doomed.discard(digest)

    def load(self, caller: str, adapter: AdapterVersion) -> bool:
        """Bring an adapter to the device; True if it is there now, else ``collect`` names ``caller`` later."""
        self._doomed.discard(adapter.digest)
        self._deferred.pop(adapter.digest, None)  # an operator's wish is not a request's
        # FULL: in host memory, and the device is full of adapters in use: good enough to be served next.
        if self._bring(adapter) is not Admission.LOADING:
            return True
        self._callers.setdefault(adapter.digest, []).append(caller)
        return False

    def unload(self, digest: str) -> None:
        """Forget an adapter; one in use leaves when its last user does."""
        self._cache.drop(digest)
        self._deferred.pop(digest, None)
        if not self._bank.drop(digest):
            self._doomed.add(digest)

    def collect(self, digest: str) -> tuple[Error | None, list[str]]:
        """Take in a finished read: its error, and the load commands that waited for it."""
        error = self._cache.collect(digest)
        callers = self._callers.pop(digest, [])
        if error is None:
            adapter = self._cache.get(digest)
            assert adapter is not None
            try:
                self._put(adapter)
            except Error as refused:
                self._cache.drop(digest)
                error = refused
        return error, callers

    @property
    def resident(self) -> dict[str, tuple[str, ...]]:
        """Digests by tier."""
        return {"device": self._bank.digests, "host": self._cache.digests}

    @property
    def loads(self) -> dict[str, tuple[int, float]]:
        """Tier -> loads into it and the seconds that they took."""
        return {
            "host": (self._cache.loads, self._cache.load_seconds),
            "device": (self._copies, self._copy_seconds),
        }

    @property
    def host_bytes(self) -> int:
        return self._cache.nbytes

    def close(self) -> None:
        self._cache.close()

    def _bring(self, adapter: AdapterVersion) -> Admission:
        self._largest = max(self._largest, adapter.rank)
        if self._bank.get(adapter.digest) is not None:
            return Admission.READY
        host = self._cache.get(adapter.digest)
        if host is None:
            if adapter.digest not in self._deferred:
                self._cache.request(adapter)
            return Admission.LOADING
        return Admission.READY if self._put(host) else Admission.FULL

    def _put(self, adapter: HostAdapter) -> bool:
        """Copy an adapter to the device; False while what is in use leaves no room."""
        started = time.monotonic()
        if self._bank.put(adapter) is None:
            return False
        self._copies, self._copy_seconds = self._copies + 1, self._copy_seconds + time.monotonic() - started
        return True
