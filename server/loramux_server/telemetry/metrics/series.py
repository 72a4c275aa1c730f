"""Counters and histograms whose labels change hands between scrapes, so that no sum of rates is ever wrong.

A series that leaves takes along what the last scrape saw of it, and the rest goes to the one that counts for it from
then on. One that comes is seen at 0 first.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate

from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.utils import floatToGoString

from .declarations import CounterMetric, HistogramMetric

Counted = CounterMetric | HistogramMetric
Labels = tuple[str, ...]
"""Values of the labels that change hands, which are the last ones of each metric."""
Row = tuple[str, ...]
"""A metric's name, and the values of its labels before those."""
Values = list[float]
"""Of a counter: its value. Of a histogram: the sum, then the count of each bucket by itself."""
Seen = dict[Labels, dict[Row, tuple[float, ...]]]


class SeriesTable:
    """The values of some metrics under labels. Its owner has a lock for all that is done with it."""

    def __init__(self, *metrics: Counted) -> None:
        self.metrics = metrics
        self._cells: dict[Labels, dict[Row, Values]] = {}
        self._seen: Seen = {}

    def add(self, labels: Labels, metric: CounterMetric, count: float, *further: str) -> None:
        """Count up. ``further``: values of the labels before ``labels``."""
        self._values(labels, metric, further)[0] += count

    def observe(self, labels: Labels, metric: HistogramMetric, value: float, *further: str) -> None:
        """Count an observation."""
        values = self._values(labels, metric, further)
        values[0] += value
        values[1 + bisect_left(metric.bounds, value)] += 1

    def begin(self, labels: Labels, *metrics: Counted) -> None:
        """Show series at 0, unless there are more."""
        for metric in metrics:
            self._values(labels, metric, ())

    def drop(self, which: Callable[[Labels], bool]) -> None:
        """End series, and forget what they counted."""
        for labels in [labels for labels in self._cells if which(labels)]:
            del self._cells[labels]

    def move(self, place: Callable[[Labels], Labels]) -> None:
        """End the series whose labels are not their own any more; what no scrape has seen counts at their ``place``."""
        for labels in list(self._cells):
            if (now := place(labels)) != labels:
                seen = self._seen.get(labels, {})
                there = self._cells.setdefault(now, {})
                for row, values in self._cells.pop(labels).items():
                    none = (0.0,) * len(values)
                    parts = zip(values, seen.get(row, none), there.get(row, none), strict=True)
                    there[row] = [value - before + other for value, before, other in parts]

    def see(self) -> Seen:
        """What a scrape shows, and so has seen."""
        self._seen = {
            labels: {row: tuple(values) for row, values in rows.items()} for labels, rows in self._cells.items()
        }
        return self._seen

    def _values(self, labels: Labels, metric: Counted, further: tuple[str, ...]) -> Values:
        rows = self._cells.get(labels)
        if rows is None:
            rows = self._cells[labels] = {}
        row = (metric.name, *further)
        values = rows.get(row)
        if values is None:
            values = rows[row] = [0.0] * (len(metric.bounds) + 2 if isinstance(metric, HistogramMetric) else 1)
        return values


def families(metrics: Iterable[Counted], seen: Seen) -> Iterator[Metric]:
    """What was seen of some metrics, for a page."""
    for metric in metrics:
        family = metric.family()
        bounds = [*map(floatToGoString, metric.bounds), "+Inf"] if isinstance(metric, HistogramMetric) else []
        for labels, rows in seen.items():
            for (name, *further), values in rows.items():
                if name != metric.name:
                    continue
                shown = [*further, *labels]
                if isinstance(family, HistogramMetricFamily):
                    buckets = list(zip(bounds, accumulate(values[1:]), strict=True))
                    family.add_metric(shown, buckets, sum_value=values[0])
                else:
                    family.add_metric(shown, values[0])
        yield family
