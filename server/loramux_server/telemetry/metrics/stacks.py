"""Time series by tenant and stack: of those that are used most, and gone once an adapter in the stack is."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from threading import Lock

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from ...core.types import BASE_NAME, Stack
from ..labels import NONE, OTHER, names_in, stack_label
from .catalog import FIRST_TOKENS, GENERATED_TOKENS, PROMPT_TOKENS, REQUEST_DURATION
from .declarations import CounterMetric, HistogramMetric
from .ranking import Ranking
from .series import Labels, SeriesTable, families

MAX_STACKS = 200
"""Stacks with a label of their own, beside the empty one."""
MAX_PAIRS = 200
"""Tenant and stack together; what others use of a stack is ``_other`` tenants'."""
MAX_TENANTS = 100
"""Tenants whose stacks without a label are told apart from others'."""

COUNTERS = (PROMPT_TOKENS, GENERATED_TOKENS)
HISTOGRAMS = (FIRST_TOKENS, REQUEST_DURATION)
NOWHERE = (NONE, NONE)


class StackSeries(Collector):
    """Counts by the labels ``tenant`` and ``adapter``. Events come from one thread, scrapes from others."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._stacks: Ranking[str] = Ranking(MAX_STACKS)
        self._pairs: Ranking[Labels] = Ranking(MAX_PAIRS)
        self._tenants: Ranking[str] = Ranking(MAX_TENANTS)
        self._table = SeriesTable(*COUNTERS, *HISTOGRAMS)

    def used(self, tenant: str, stack: Stack) -> None:
        """A request began: who is used most has labels."""
        label = stack_label(stack)
        with self._lock:
            if label != BASE_NAME:
                self._stacks.use(label)
            self._pairs.use((tenant, label))
            self._tenants.use(tenant)

    def add(self, metric: CounterMetric, tenant: str, stack: Stack, count: float) -> None:
        """Count something that a stack was used for."""
        label = stack_label(stack)
        with self._lock:
            self._table.add(self._place((tenant, label)), metric, count)

    def observe(self, metric: HistogramMetric, tenant: str, stack: Stack | None, seconds: float, *further: str) -> None:
        """Count a time. ``further``: values of the labels before tenant and stack, which have none without a stack."""
        labels = NOWHERE if stack is None else (tenant, stack_label(stack))
        with self._lock:
            self._table.observe(self._place(labels), metric, seconds, *further)

    def adapter_deleted(self, name: str, keeps: Collection[str]) -> None:
        """Drop an adapter's series, except those of tenants that have an adapter of the name still.

        Requests under way bring none of them back: what they still count is ``_other``'s.
        """

        def gone(labels: Labels) -> bool:
            tenant, label = labels
            return name in names_in(label) and (not keeps if tenant == OTHER else tenant not in keeps)

        with self._lock:
            self._table.drop(gone)
            self._pairs.forget(gone)
            if not keeps:
                self._stacks.forget(lambda label: name in names_in(label))

    def describe(self) -> Iterator[Metric]:
        for metric in self._table.metrics:
            yield metric.family()

    def collect(self) -> Iterator[Metric]:
        with self._lock:
            self._settle()
            seen = self._table.see()
        yield from families(self._table.metrics, seen)

    def _place(self, labels: Labels) -> Labels:
        """Under which labels something counts just now."""
        tenant, label = labels
        if labels == NOWHERE:
            return labels
        if label != BASE_NAME and label not in self._stacks:
            return (tenant if tenant in self._tenants else OTHER), OTHER
        return (tenant if labels in self._pairs else OTHER), label

    def _settle(self) -> None:
        """Give labels to who is used most by now."""
        stacks = self._stacks.settle()
        begun: list[Labels] = [*self._pairs.settle(), *((tenant, OTHER) for tenant in self._tenants.settle())]
        of_one = {label for _, label in self._pairs}
        begun += [(OTHER, label) for label in stacks if label not in of_one]
        self._table.move(self._place)
        for labels in begun:
            if self._place(labels) == labels:
                self._table.begin(labels, *COUNTERS, FIRST_TOKENS)
