"""Time series by tenant and stack: of those that are used most, and gone once an adapter in the stack is."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterator
from itertools import accumulate
from threading import Lock

from prometheus_client.core import Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from ..core.types import Stack
from .catalog import FIRST_TOKENS, GENERATED_TOKENS, PROMPT_TOKENS, REQUEST_DURATION
from .declarations import CounterMetric, HistogramMetric
from .labels import BARE, NONE, OTHER, names_in, stack_label
from .ranking import Ranking

MAX_STACKS = 200
"""Stacks with a label of their own, beside the empty one."""
MAX_PAIRS = 200
"""Tenant and stack together; what others use of a stack is ``_other`` tenants'."""
MAX_TENANTS = 100
"""Tenants whose stacks without a label are told apart from others'."""

Labels = tuple[str, str]
"""Values of ``tenant`` and ``adapter``."""
Row = tuple[str, ...]
"""A metric's name, and the values of its labels before these two."""
Values = list[float]
"""Of a counter: its value. Of a histogram: the sum, then the count of each bucket by itself."""
Cell = dict[Row, Values]
"""All that is counted under two labels."""

COUNTERS = (PROMPT_TOKENS, GENERATED_TOKENS)
HISTOGRAMS = (FIRST_TOKENS, REQUEST_DURATION)


class StackSeries(Collector):
    """Counts by tenant and stack. Events come from one thread, scrapes from others.

    Labels change hands only between two scrapes, so that no sum is ever wrong: a series that leaves takes with it
    what scrapes have seen of it, and the rest goes to the one that stands for it. One that comes is seen at 0 first.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._stacks: Ranking[str] = Ranking(MAX_STACKS)
        self._pairs: Ranking[Labels] = Ranking(MAX_PAIRS)
        self._tenants: Ranking[str] = Ranking(MAX_TENANTS)
        self._cells: dict[Labels, Cell] = {}
        self._seen: dict[Labels, dict[Row, tuple[float, ...]]] = {}
        """What the last scrape saw."""

    def used(self, tenant: str, stack: Stack) -> None:
        """A request began: who is used most has labels."""
        label = stack_label(stack)
        with self._lock:
            if label != BARE:
                self._stacks.use(label)
            self._pairs.use((tenant, label))
            self._tenants.use(tenant)

    def add(self, metric: CounterMetric, tenant: str, stack: Stack, count: float) -> None:
        """Count something that a stack was used for."""
        label = stack_label(stack)
        with self._lock:
            self._values(self._place(tenant, label), metric)[0] += count

    def observe(self, metric: HistogramMetric, tenant: str, stack: Stack | None, seconds: float, *further: str) -> None:
        """Count a time. ``further``: values of the labels before tenant and stack, which have none without a stack."""
        label = None if stack is None else stack_label(stack)
        with self._lock:
            place = (NONE, NONE) if label is None else self._place(tenant, label)
            values = self._values(place, metric, *further)
            values[0] += seconds
            values[1 + bisect_left(metric.bounds, seconds)] += 1

    def adapter_deleted(self, name: str, keeps: Collection[str]) -> None:
        """Drop an adapter's series, except those of tenants that have an adapter of the name still.

        Requests under way bring none of them back: what they still count is ``_other``'s.
        """

        def gone(labels: Labels) -> bool:
            tenant, label = labels
            return name in names_in(label) and (not keeps if tenant == OTHER else tenant not in keeps)

        with self._lock:
            for labels in [labels for labels in self._cells if gone(labels)]:
                del self._cells[labels]
            self._pairs.forget(gone)
            if not keeps:
                self._stacks.forget(lambda label: name in names_in(label))

    def describe(self) -> Iterator[Metric]:
        for metric in (*COUNTERS, *HISTOGRAMS):
            yield metric.family()

    def collect(self) -> Iterator[Metric]:
        with self._lock:
            self._settle()
            self._seen = seen = {
                labels: {row: tuple(values) for row, values in cell.items()} for labels, cell in self._cells.items()
            }
        for counter in COUNTERS:
            yield _counter(counter, seen)
        for histogram in HISTOGRAMS:
            yield _histogram(histogram, seen)

    def _place(self, tenant: str, label: str) -> Labels:
        """Under which labels something counts just now."""
        if label != BARE and label not in self._stacks:
            return (tenant if tenant in self._tenants else OTHER), OTHER
        return (tenant if (tenant, label) in self._pairs else OTHER), label

    def _values(self, place: Labels, metric: CounterMetric | HistogramMetric, *further: str) -> Values:
        cell = self._cells.get(place)
        if cell is None:
            cell = self._cells[place] = {}
        row = (metric.name, *further)
        values = cell.get(row)
        if values is None:
            values = cell[row] = [0.0] * (len(metric.bounds) + 2 if isinstance(metric, HistogramMetric) else 1)
        return values

    def _settle(self) -> None:
        """Give labels to who is used most by now."""
        stacks = self._stacks.settle()
        begun = [*self._pairs.settle(), *((tenant, OTHER) for tenant in self._tenants.settle())]
        of_one = {label for _, label in self._pairs}
        begun += [(OTHER, label) for label in stacks if label not in of_one]
        for labels in [labels for labels in self._cells if labels != (NONE, NONE)]:
            place = self._place(*labels)
            if place != labels:
                self._move(labels, place)
        for labels in begun:
            if self._place(*labels) == labels:
                for metric in (*COUNTERS, FIRST_TOKENS):
                    self._values(labels, metric)

    def _move(self, labels: Labels, place: Labels) -> None:
        """End a series; what no scrape has seen of it counts where it counts from now on."""
        seen = self._seen.get(labels, {})
        rest = self._cells.setdefault(place, {})
        for row, values in self._cells.pop(labels).items():
            none = (0.0,) * len(values)
            before, there = seen.get(row, none), rest.get(row, none)
            rest[row] = [value - old + other for value, old, other in zip(values, before, there, strict=True)]


def _counter(metric: CounterMetric, seen: dict[Labels, dict[Row, tuple[float, ...]]]) -> Metric:
    family = metric.family()
    for labels, cell in seen.items():
        if (values := cell.get((metric.name,))) is not None:
            family.add_metric(labels, values[0])
    return family


def _histogram(metric: HistogramMetric, seen: dict[Labels, dict[Row, tuple[float, ...]]]) -> Metric:
    family = metric.family()
    bounds = [*map(floatToGoString, metric.bounds), "+Inf"]
    for labels, cell in seen.items():
        for (name, *further), values in cell.items():
            if name == metric.name:
                buckets = list(zip(bounds, accumulate(values[1:]), strict=True))
                family.add_metric((*further, *labels), buckets, sum_value=values[0])
    return family
