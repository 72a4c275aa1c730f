"""What the log cannot say itself: how many of its lines were lost."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from .. import stderr
from .catalog import LOG_LINES_DROPPED


class LogCollector(Collector):
    """Counts the lines that standard error did not take, while the server logs there."""

    def collect(self) -> Iterable[Metric]:
        family = LOG_LINES_DROPPED.family()
        family.add_metric((), stderr.dropped())
        yield family
