"""The Prometheus metrics: declared in the catalog, kept in a registry, read at each scrape."""

from .registry import Metrics

__all__ = ["Metrics"]
