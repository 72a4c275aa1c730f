"""A page of metrics as a scrape reads it."""

from __future__ import annotations

from collections import defaultdict

from prometheus_client.parser import text_string_to_metric_families

Page = dict[str, dict[tuple[tuple[str, str], ...], float]]
"""Samples by name and labels."""


def read(text: str) -> Page:
    """The samples of a page in Prometheus' text format."""
    found: Page = defaultdict(dict)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found[sample.name][tuple(sorted(sample.labels.items()))] = sample.value
    return found


def value(page: Page, name: str, **labels: str) -> float:
    """The sample with exactly these labels. Raises KeyError where there is none."""
    return page[name][tuple(sorted(labels.items()))]


def total(page: Page, name: str, **labels: str) -> float:
    """The sum of the samples that have these labels among theirs."""
    return sum(value for found, value in page[name].items() if labels.items() <= dict(found).items())
