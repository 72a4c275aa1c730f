"""Calls that quotas refused, by the tenants that are refused most."""

from __future__ import annotations

from collections.abc import Iterator
from threading import Lock

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from ..labels import OTHER
from .catalog import QUOTA_REFUSALS
from .ranking import Ranking
from .series import Labels, SeriesTable, families

MAX_TENANTS = 100
"""Tenants with a label of their own."""


class RefusalSeries(Collector):
    """Counts refusals. Events come from one thread, scrapes from others."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._tenants: Ranking[str] = Ranking(MAX_TENANTS)
        self._table = SeriesTable(QUOTA_REFUSALS)

    def refused(self, tenant: str, limit: str) -> None:
        """A quota refused a call. ``limit`` must be the name of one."""
        with self._lock:
            self._tenants.use(tenant)
            self._table.add(self._place((tenant,)), QUOTA_REFUSALS, 1, limit)

    def describe(self) -> Iterator[Metric]:
        yield QUOTA_REFUSALS.family()

    def collect(self) -> Iterator[Metric]:
        with self._lock:
            self._tenants.settle()
            self._table.move(self._place)
            seen = self._table.see()
        yield from families(self._table.metrics, seen)

    def _place(self, labels: Labels) -> Labels:
        return labels if labels[0] in self._tenants else (OTHER,)
