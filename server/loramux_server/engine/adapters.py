"""Brings the adapters of a stack to the device before a request starts, and lets go of them after."""

from __future__ import annotations

from collections.abc import Callable

from ..core.errors import Code, Error
from ..core.types import AdapterVersion, Stack
from ..lora.bank import AdapterBank
from ..lora.cache import HostCache
from .scheduler import Admission


class AdapterDesk:
    """Between the scheduler's question "may this stack run now?" and bank, host cache and disk."""

    def __init__(self, bank: AdapterBank, cache: HostCache) -> None:
        self._bank, self._cache = bank, cache
        self._callers: dict[str, list[str]] = {}  # digest -> ids of load commands that wait for it
        self._doomed: set[str] = set()

    def on_loaded(self, wake: Callable[[str], None]) -> None:
        """``wake(digest)`` is called from another thread when a read ends; the owner then calls :meth:`collect`."""
        self._cache.on_loaded = wake

    def check(self, *stacks: Stack) -> None:
        """Raise RESOURCE_EXHAUSTED for a stack that can never be resident at once."""
        for stack in stacks:
            if stack.rank > self._bank.rows:
                raise Error(
                    Code.RESOURCE_EXHAUSTED,
                    f"the stack has rank {stack.rank} in all and there is room for {self._bank.rows}; "
                    "use fewer or smaller adapters, or raise --adapter-memory",
                    reason="STACK_TOO_LARGE",
                )

    def prefetch(self, stack: Stack) -> None:
        """Start reading what is not in memory, so that it lands while the request queues."""
        for entry in stack.entries:
            if self._bank.get(entry.adapter.digest) is None:
                self._cache.request(entry.adapter)

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
        # FULL: in host memory, and the device is full of adapters in use: good enough to be served next.
        if self._bring(adapter) is not Admission.LOADING:
            return True
        self._callers.setdefault(adapter.digest, []).append(caller)
        return False

    def unload(self, digest: str) -> None:
        """Forget an adapter; one in use leaves when its last user does."""
        self._cache.drop(digest)
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
                self._bank.put(adapter)
            except Error as refused:
                self._cache.drop(digest)
                error = refused
        return error, callers

    @property
    def resident(self) -> dict[str, tuple[str, ...]]:
        """Digests by tier."""
        return {"device": self._bank.digests, "host": self._cache.digests}

    @property
    def host_bytes(self) -> int:
        return self._cache.nbytes

    def close(self) -> None:
        self._cache.close()

    def _bring(self, adapter: AdapterVersion) -> Admission:
        if self._bank.get(adapter.digest) is not None:
            return Admission.READY
        host = self._cache.get(adapter.digest)
        if host is None:
            self._cache.request(adapter)
            return Admission.LOADING
        return Admission.FULL if self._bank.put(host) is None else Admission.READY
