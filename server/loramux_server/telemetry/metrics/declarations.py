"""What declares a metric: one object, from which its time series and its row of the documentation come."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    SummaryMetricFamily,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Declared:
    """A metric, by the name that a scrape shows."""

    kind: ClassVar[str]
    name: str
    meaning: str
    labels: tuple[str, ...] = ()
    unit: str = ""
    """Of the value; empty: it counts what the name says, or is 0 or 1."""
    since: str = "0.1.0"


class CounterMetric(Declared):
    """Only grows. Its name ends in ``_total``."""

    kind = "counter"

    def register(self, registry: CollectorRegistry) -> Counter:
        """The counter itself, for events that are counted as they happen."""
        return Counter(self.name, self.meaning, self.labels, registry=registry)

    def family(self) -> CounterMetricFamily:
        """One reading, for counts that are kept elsewhere; samples are to be added."""
        return CounterMetricFamily(self.name.removesuffix("_total"), self.meaning, labels=self.labels)


class GaugeMetric(Declared):
    """Goes up and down."""

    kind = "gauge"

    def register(self, registry: CollectorRegistry) -> Gauge:
        """The gauge itself."""
        return Gauge(self.name, self.meaning, self.labels, registry=registry)

    def family(self) -> GaugeMetricFamily:
        """One reading; samples are to be added."""
        return GaugeMetricFamily(self.name, self.meaning, labels=self.labels)


@dataclass(frozen=True, slots=True, kw_only=True)
class HistogramMetric(Declared):
    """Observations, counted by upper bounds."""

    kind = "histogram"
    bounds: tuple[float, ...]

    def register(self, registry: CollectorRegistry) -> Histogram:
        """The histogram itself."""
        return Histogram(self.name, self.meaning, self.labels, buckets=self.bounds, registry=registry)

    def family(self) -> HistogramMetricFamily:
        """One reading; samples are to be added."""
        return HistogramMetricFamily(self.name, self.meaning, labels=self.labels)


class SummaryMetric(Declared):
    """How many there were, and their sum."""

    kind = "summary"

    def family(self) -> SummaryMetricFamily:
        """One reading; samples are to be added."""
        return SummaryMetricFamily(self.name, self.meaning, labels=self.labels)
