"""Which adapters are resident: gives the stacks of requests slots on the device, and has what is missing read."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable

from ...core.errors import Code, Error
from ...core.observing.timeline import TIMELINE
from ...core.types import AdapterVersion, Stack
from ...lora.bank import AdapterBank, PackedAdapter
from ...lora.slots import Entries, Slot, Swap
from ...model.out_of_memory import out_of_memory
from ..scheduling.plan import Admission
from ..scheduling.sequence import Sequence
from .cache import HostCache
from .load_quota import LoadQuota
from .loading import ReadQueue


class ResidencyManager:
    """Bank, host cache and disk behind the scheduler's view of them. :meth:`collect` follows each read that ends."""

    def __init__(self, bank: AdapterBank, cache: HostCache, quota: LoadQuota) -> None:
        self._bank, self._cache = bank, cache
        self._reads = ReadQueue(cache, quota, lambda adapter: bank.nbytes_of(adapter.rank), self._stuck)
        self._waiting: dict[str, Stack] = {}  # requests that have not started, by id
        self._callers: dict[str, list[str]] = {}  # digest -> ids of load commands that wait for it
        self._unloading: set[str] = set()
        self._pinned: dict[str, int] = {}  # digest -> rank of what an operator pinned
        self._largest = 0  # rank of the largest adapter that was ever asked for
        self.hits: Counter[str] = Counter(device=0, host=0, disk=0)
        self._copies, self._copy_seconds = 0, 0.0
        self._swaps: list[Swap] = []  # planned, not drained yet
        self._sources: dict[str, PackedAdapter] = {}  # what planned swaps load; host memory may have let go of it

    def check(self, *stacks: Stack) -> None:
        """Raise RESOURCE_EXHAUSTED for a stack that can never be resident at once."""
        for stack in stacks:
            needed = sum(self._rank(e.adapter) for e in stack.entries if e.adapter.digest not in self._pinned)
            capacity = self._bank.rows - sum(self._pinned.values())
            if needed > capacity:
                beside = " beside the pinned adapters" if self._pinned else ""
                raise Error(
                    Code.RESOURCE_EXHAUSTED,
                    f"the stack has rank {needed} in all and there is room for {capacity}{beside}; "
                    "use fewer or smaller adapters, or raise --adapter-memory",
                    reason="STACK_TOO_LARGE",
                )

    def _rank(self, adapter: AdapterVersion) -> int:
        """What an adapter takes: the rank of its files once they were read, whatever a command says."""
        held = self._bank.get(adapter.digest) or self._cache.get(adapter.digest)
        return adapter.rank if held is None else held.rank

    def pin(self, adapters: Iterable[AdapterVersion]) -> None:
        """Never evict these, and only these. RESOURCE_EXHAUSTED if the largest known adapter did not fit beside."""
        pinned = {adapter.digest: adapter.rank for adapter in adapters}
        largest = max([self._largest, *pinned.values()])
        if pinned and sum(pinned.values()) + largest > self._bank.rows:
            raise Error(
                Code.RESOURCE_EXHAUSTED,
                f"the pinned adapters would have rank {sum(pinned.values())} in all; of the {self._bank.rows} that "
                f"there is room for, {largest} must stay free for others: unpin some, or raise --adapter-memory",
                reason="TOO_MANY_PINNED",
            )
        self._pinned = pinned
        self._bank.pinned = frozenset(pinned)

    def expect(self, seq: Sequence) -> None:
        """A request came: what is not in memory is read while it queues, or when its tenant may have it read."""
        if not seq.stack:
            return
        for adapter in _adapters(seq.stack):
            self._largest = max(self._largest, adapter.rank)
            if self._bank.get(adapter.digest) is not None:
                self.hits["device"] += 1
                continue
            if self._cache.get(adapter.digest) is not None:
                self.hits["host"] += 1
                continue
            self.hits["disk"] += 1
            self._reads.want(adapter, seq.id, seq.tenant)
        self._waiting[seq.id] = seq.stack

    def forget(self, seq: Sequence) -> None:
        """A request started, or left without."""
        self._waiting.pop(seq.id, None)
        self._reads.release(seq.id, (e.adapter.digest for e in seq.stack.entries))
        self._cache.trim(self._reads.claims)

    def read_on(self) -> float | None:
        """Start the reads that may begin now; seconds until a quota lets the next one, None if none waits for that."""
        return self._reads.begin()

    def acquire(self, seq: Sequence) -> Admission:
        """Make the stack of ``seq`` resident and count it as in use, or change nothing.

        LOADING: it is worth asking again when one of its adapters is loaded. FULL: when something is released.
        """
        adapters = _adapters(seq.stack)
        missing = [a for a in adapters if self._bank.get(a.digest) is None]
        hosts = {a.digest: self._cache.get(a.digest) for a in missing}
        self._waiting[seq.id] = seq.stack
        if absent := [a for a in missing if hosts[a.digest] is None]:
            for adapter in absent:
                # It was here, or paid for, when the request came: that it is read again costs its tenant nothing.
                self._reads.want(adapter, seq.id, None)
            return Admission.LOADING
        found = [host for host in hosts.values() if host is not None]
        resident = [a.digest for a in adapters if a.digest not in hosts]
        ranks = {d: self._bank.slot(d).rank for d in resident} | {h.digest: h.rank for h in found}
        if not self._bank.fits(ranks):
            return Admission.FULL
        for digest in resident:  # first, so that none is evicted for another
            self._bank.acquire(digest)
        for host in found:
            self._plan(host)
            self._bank.acquire(host.digest)
        self.forget(seq)
        return Admission.READY

    def release(self, stack: Stack) -> None:
        for entry in stack.entries:
            digest = entry.adapter.digest
            self._bank.release(digest)
            if digest in self._unloading and self._bank.drop(digest):
                self._unloading.discard(digest)

    def entries(self, stack: Stack) -> Entries:
        """The slots and weights of a resident stack. A weight of 0 is no adapter at all."""
        return tuple((self._bank.slot(e.adapter.digest), e.weight) for e in stack.entries if e.weight)

    def drain_swaps(self) -> tuple[Swap, ...]:
        """The swaps that were planned since the last call; :meth:`apply` carries them out."""
        swaps, self._swaps = tuple(self._swaps), []
        return swaps

    def apply(self, swaps: Iterable[Swap]) -> frozenset[str]:
        """Carry swaps out on the device. Gives the digests that found no memory there, and are resident no more."""
        failed: set[str] = set()
        for swap in swaps:
            digest, started = swap.slot.digest, time.monotonic()
            if self._bank.on_host:
                self._keep(slot for slot in swap.evicted if slot.digest not in failed)
            try:
                with TIMELINE.range("load adapter", digest=digest, evicted=len(swap.evicted)):
                    self._bank.apply(swap, self._sources[digest])
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                self._bank.lose(digest)
                failed.add(digest)
                continue
            if self._bank.on_host:
                self._cache.drop(digest)
            self._copies, self._copy_seconds = self._copies + 1, self._copy_seconds + time.monotonic() - started
        self._sources.clear()
        self._cache.trim(self._reads.claims)
        return frozenset(failed)

    def load(self, caller: str, adapter: AdapterVersion) -> bool:
        """Bring an adapter to the device; True if it is there now, else ``collect`` names ``caller`` later."""
        self._unloading.discard(adapter.digest)
        self._largest = max(self._largest, adapter.rank)
        if self._bank.get(adapter.digest) is not None:
            return True
        if (host := self._cache.get(adapter.digest)) is not None:
            # Where the device is full of adapters in use, it stays in host memory: good enough to be served next.
            self._plan(host)
            return True
        self._callers.setdefault(adapter.digest, []).append(caller)
        self._reads.hurry(adapter)
        return False

    def unload(self, digest: str) -> None:
        """Forget an adapter; one in use leaves when its last user does."""
        self._cache.drop(digest)
        if not self._bank.drop(digest):
            self._unloading.add(digest)

    def answers(self, id: str) -> bool:
        """Whether a load command of this id waits for its adapter."""
        return any(id in callers for callers in self._callers.values())

    def collect(self, digest: str) -> tuple[Error | None, list[str]]:
        """Take in a finished read: its error, and the load commands that waited for it."""
        self._reads.ended(digest)
        error = self._cache.collect(digest)
        callers = self._callers.pop(digest, [])
        if error is None and callers:
            adapter = self._cache.get(digest)
            assert adapter is not None
            self._plan(adapter)
        self._cache.trim(self._reads.claims)
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

    def idle_state(self) -> dict[str, int]:
        """What is held, by kind: all counts are 0 when no request lives and no read has begun."""
        return {
            "refcounts": self._bank.in_use,
            "swaps": len(self._swaps) + len(self._sources),
            "stacks": len(self._waiting),
            "claims": len(self._reads.claims),
            "reads": len(self._reads),
        }

    def close(self) -> None:
        self._cache.close()

    def _stuck(self) -> bool:
        """Whether no waiting request has all its adapters in memory."""
        here = {*self._bank.digests, *self._cache.digests}
        return not any(all(e.adapter.digest in here for e in stack.entries) for stack in self._waiting.values())

    def _keep(self, evicted: Iterable[Slot]) -> None:
        """Take what leaves a bank in host memory into the cache: there an adapter is in one of the two."""
        for slot in evicted:
            try:
                self._cache.put(self._bank.unpack(slot))
                self._reads.came(slot.digest)
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise  # else its files have it

    def _plan(self, adapter: PackedAdapter) -> None:
        """Give an adapter a slot, unless it has one or does not fit beside what is in use."""
        if self._bank.get(adapter.digest) is None and (swap := self._bank.plan(adapter)) is not None:
            self._swaps.append(swap)
            self._sources[adapter.digest] = adapter


def _adapters(stack: Stack) -> list[AdapterVersion]:
    return [entry.adapter for entry in stack.entries]
