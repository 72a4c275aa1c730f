"""From a stack as the caller wrote it to pinned versions."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from types import MappingProxyType

from ..core.errors import Error, adapter_not_found
from ..core.types import BASE, Stack, StackEntry, StackItem
from ..store.store import Store


class StackResolver:
    """Looks references up in the registry. The versions found are the request's until it ends, whatever happens."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def resolve(
        self, items: Sequence[StackItem], tenant: str, donors: Mapping[str, str] = MappingProxyType({})
    ) -> Stack:
        """The stack of a request, all its names resolved as of one moment.

        ``donors`` are a job's own versions with their digests: found even if they are deleted by now. Raises
        NOT_FOUND naming the adapter that is unknown (or another tenant's), FAILED_PRECONDITION for one that must not
        be used, DATA_LOSS when its files are gone.
        """
        if not items:
            return BASE
        return await asyncio.to_thread(self._resolve, items, tenant, donors)

    async def resolve_many(
        self,
        stacks: Sequence[Sequence[StackItem]],
        tenant: str,
        donors: Mapping[str, str] = MappingProxyType({}),
    ) -> tuple[Stack, ...]:
        """Several stacks, resolved as of one moment; the same errors."""
        items = [item for stack in stacks for item in stack]
        flat = iter((await self.resolve(items, tenant, donors)).entries)
        return tuple(Stack(tuple(next(flat) for _ in stack)) for stack in stacks)

    @contextmanager
    def held(self, stack: Stack) -> Iterator[None]:
        """Around the use of a resolved stack: its files stay, even if its versions are deleted meanwhile.

        Raises NOT_FOUND when they were deleted, and their files removed, since it was resolved.
        """
        with ExitStack() as holds:
            for entry in stack.entries:
                try:
                    holds.enter_context(self._store.blobs.holding([entry.adapter.digest]))
                except Error as gone:
                    raise adapter_not_found(entry.adapter.ref) from gone
            yield

    def _resolve(self, items: Sequence[StackItem], tenant: str, donors: Mapping[str, str]) -> Stack:
        versions = self._store.adapters.resolve_all([item.adapter for item in items], tenant, donors)
        self._store.adapters.touch([version.digest for version in versions])
        entries = (StackEntry(version, item.weight) for version, item in zip(versions, items, strict=True))
        return Stack(tuple(entries))


def active(stack: Stack) -> Stack:
    """The part of a stack that changes the output: a weight of 0 is an adapter that is off."""
    return Stack(tuple(entry for entry in stack.entries if entry.weight != 0))


def pinned_items(stack: Stack) -> tuple[StackItem, ...]:
    """A resolved stack written down again, every name with its version."""
    return tuple(StackItem(entry.adapter.ref, entry.weight) for entry in stack.entries)
