"""From a stack as the caller wrote it to pinned versions."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from threading import Lock
from types import MappingProxyType

from ...core.callers.principal import Viewer, may_find, tenant_of
from ...core.errors import Code, Error, adapter_not_found
from ...core.observing.outage import Outage
from ...core.types import BASE, AdapterVersion, Stack, StackEntry, StackItem
from ...store.store import Store
from ...telemetry.logs import get_logger
from .shielding import to_the_end

log = get_logger(__name__)

ASK_AGAIN_SECONDS = 5.0
"""While the database is away, how often somebody tries it for names that are known: it may take long to say nothing."""
MOST_KNOWN = 10_000
"""References whose last meaning is kept for the time that the database is away."""


class StackResolver:
    """Looks references up in the registry. The versions found are the request's until it ends, whatever happens.

    While the database is away, a reference means what it meant when it was last asked for: adapters in use go on.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: OrderedDict[tuple[str, str], AdapterVersion] = OrderedDict()
        self._lock = Lock()  # lookups run on several threads
        self._outage = Outage()
        self._ask_again = 0.0

    async def resolve(
        self, items: Sequence[StackItem], viewer: Viewer, donors: Mapping[str, str] = MappingProxyType({})
    ) -> Stack:
        """The stack of a request, all its names resolved as of one moment.

        ``donors`` are a job's own versions with their digests: found even if they are deleted by now. Raises
        NOT_FOUND naming the adapter that is unknown (or another tenant's, or not on the key's list),
        FAILED_PRECONDITION for one that must not be used, DATA_LOSS when its files are gone.
        """
        if not items:
            return BASE
        return await asyncio.to_thread(self._resolve, items, viewer, donors)

    async def resolve_many(
        self,
        stacks: Sequence[Sequence[StackItem]],
        viewer: Viewer,
        donors: Mapping[str, str] = MappingProxyType({}),
    ) -> tuple[Stack, ...]:
        """Several stacks, resolved as of one moment; the same errors."""
        items = [item for stack in stacks for item in stack]
        flat = iter((await self.resolve(items, viewer, donors)).entries)
        return tuple(Stack(tuple(next(flat) for _ in stack)) for stack in stacks)

    @asynccontextmanager
    async def held(self, stack: Stack) -> AsyncGenerator[None]:
        """Around the use of a resolved stack: its files stay, even if its versions are deleted meanwhile.

        Raises NOT_FOUND when they were deleted, and their files removed, since it was resolved.
        """
        with ExitStack() as holds:
            # Looking at local files takes less time than a thread would cost; a download blocks.
            if self._store.blobs.remote and stack:
                await to_the_end(asyncio.to_thread(self._hold, stack, holds))
            else:
                self._hold(stack, holds)
            yield

    def _hold(self, stack: Stack, holds: ExitStack) -> None:
        for entry in stack.entries:
            try:
                holds.enter_context(self._store.blobs.holding([entry.adapter.digest]))
            except Error as gone:
                raise adapter_not_found(entry.adapter.ref) from gone

    def _resolve(self, items: Sequence[StackItem], viewer: Viewer, donors: Mapping[str, str]) -> Stack:
        names = [item.adapter for item in items]
        versions = self._known_while_away(names, viewer)
        if versions is None:
            try:
                versions = self._store.adapters.resolve_all(names, viewer, donors)
            except Error as error:
                if error.code is Code.UNAVAILABLE:
                    versions = self._recall(names, viewer, error)
                else:
                    self._forget(names, tenant_of(viewer))
                    raise
            else:
                self._remember(names, tenant_of(viewer), versions)
        self._store.adapters.touch([version.digest for version in versions], tenant_of(viewer))
        entries = (StackEntry(version, item.weight) for version, item in zip(versions, items, strict=True))
        return Stack(tuple(entries))

    def _known_while_away(self, names: Sequence[str], viewer: Viewer) -> tuple[AdapterVersion, ...] | None:
        """What the names meant last, if the database was away a moment ago; None: ask it."""
        with self._lock:
            if not self._outage.failures:
                return None
            now = time.monotonic()
            if now >= self._ask_again:
                self._ask_again = now + ASK_AGAIN_SECONDS  # this one asks, those after it go on
                return None
            versions = self._meant_last(names, viewer)
        return versions if len(versions) == len(names) else None

    def _remember(self, names: Sequence[str], tenant: str, versions: Sequence[AdapterVersion]) -> None:
        self._answers()
        with self._lock:
            for name, version in zip(names, versions, strict=True):
                self._known[tenant, name] = version
                self._known.move_to_end((tenant, name))
            while len(self._known) > MOST_KNOWN:
                self._known.popitem(last=False)

    def _answers(self) -> None:
        with self._lock:
            seconds = self._outage.over()
        if seconds is not None:
            log.warning("the registry answers again", after_seconds=round(seconds, 1))

    def _recall(self, names: Sequence[str], viewer: Viewer, error: Error) -> tuple[AdapterVersion, ...]:
        """What the names meant last; raises ``error`` where one was never asked for."""
        with self._lock:
            versions = self._meant_last(names, viewer)
            first = self._outage.failed()
            self._ask_again = time.monotonic() + ASK_AGAIN_SECONDS
        if first:
            log.warning("the registry is away: adapters mean what they meant last", error=error.message)
        if len(versions) < len(names):
            raise error
        return versions

    def _meant_last(self, names: Sequence[str], viewer: Viewer) -> tuple[AdapterVersion, ...]:
        """What those of the names meant that are known, and that the viewer may find; under the lock."""
        found = (self._known.get((tenant_of(viewer), name)) for name in names)
        return tuple(version for version in found if version is not None and may_find(viewer, version.name))

    def _forget(self, names: Sequence[str], tenant: str) -> None:
        """One of them is gone or must not be used: which one, the next lookup tells."""
        self._answers()
        with self._lock:
            for name in names:
                self._known.pop((tenant, name), None)


def active(stack: Stack) -> Stack:
    """The part of a stack that changes the output: a weight of 0 is an adapter that is off."""
    return Stack(tuple(entry for entry in stack.entries if entry.weight != 0))


def pinned_items(stack: Stack) -> tuple[StackItem, ...]:
    """A resolved stack written down again, every name with its version."""
    return tuple(StackItem(entry.adapter.ref, entry.weight) for entry in stack.entries)
