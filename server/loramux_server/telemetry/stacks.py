"""Time series by tenant and stack: bounded in number, and gone once an adapter in the stack is."""

from __future__ import annotations

from collections import Counter as Counts
from collections.abc import Collection

from prometheus_client import Counter

from ..core.types import Stack
from .labels import OTHER, BoundedLabels, stack_label

Labels = tuple[str, str]
"""Values of the labels ``tenant`` and ``adapter``."""


class StackSeries:
    """The labels of requests in ``counters``, which have those of :data:`Labels`."""

    def __init__(self, counters: Collection[Counter], tenants: BoundedLabels, max_stacks: int) -> None:
        self._counters = counters
        self._tenants = tenants
        self._stacks = BoundedLabels(max_stacks)
        self._known: dict[Labels, tuple[str, frozenset[str]]] = {}
        """Tenant and names of the adapters behind labels that are in use."""
        self._running: Counts[Labels] = Counts()
        self._ended: set[Labels] = set()

    def labels(self, tenant: str, stack: Stack) -> Labels:
        """Those of a request."""
        names = [entry.adapter.name for entry in stack.entries]
        labels = self._tenants(tenant), self._stacks(stack_label(names))
        if OTHER not in labels:  # those are of many
            self._known.setdefault(labels, (tenant, frozenset(names)))
        return labels

    def started(self, tenant: str, stack: Stack) -> Labels:
        """A request began; gives its labels."""
        labels = self.labels(tenant, stack)
        self._running[labels] += 1
        self._ended.discard(labels)
        return labels

    def finished(self, tenant: str, stack: Stack) -> None:
        """A request that began has ended."""
        labels = self.labels(tenant, stack)
        self._running[labels] -= 1
        self._running += Counts()  # drops what nobody runs
        self._drop(labels)

    def adapter_deleted(self, name: str, keeps: Collection[str]) -> None:
        """Let go of an adapter's series, except for the tenants that have an adapter of the name still."""
        for labels, (tenant, names) in list(self._known.items()):
            if name in names and tenant not in keeps:
                self._ended.add(labels)
                self._drop(labels)

    def _drop(self, labels: Labels) -> None:
        """Remove series that are to go, unless a request would bring them back."""
        if labels not in self._ended or self._running[labels]:
            return
        for counter in self._counters:
            counter.remove(*labels)
        self._ended.discard(labels)
        del self._known[labels]
        if not any(stack == labels[1] for _, stack in self._known):
            self._stacks.forget(labels[1])
