"""Figures of a classification: F1 of each label, a confusion matrix, and how far probabilities can be trusted."""

from __future__ import annotations

import math
from collections.abc import Sequence

BINS = 10
TEMPERATURES = [1.05**power for power in range(-30, 61)]
"""From a quarter to 19, in steps of 5 %."""


def f1_scores(labels: Sequence[str], wanted: Sequence[str], given: Sequence[str]) -> dict[str, float]:
    """F1 of each label that is wanted or given; their mean is the macro F1.

    An answer that is no label counts as wrong.
    """
    found = {}
    for label in labels:
        right = sum(w == g == label for w, g in zip(wanted, given, strict=True))
        total = wanted.count(label) + given.count(label)
        if total:
            found[label] = 2 * right / total
    return found


def confusion(labels: Sequence[str], wanted: Sequence[str], given: Sequence[str]) -> list[list[int]]:
    """How often each label (row) got each label (column); the last column is of answers that are no label."""
    place = {label: i for i, label in enumerate(labels)}
    counts = [[0] * (len(labels) + 1) for _ in labels]
    for w, g in zip(wanted, given, strict=True):
        counts[place[w]][place.get(g, len(labels))] += 1
    return counts


def probabilities(logprobs: Sequence[float], temperature: float = 1.0) -> list[float]:
    """Probabilities of labels from their log-probabilities as answers, which add up to 1."""
    most = max(logprobs)
    weights = [math.exp((value - most) / temperature) for value in logprobs]
    return [weight / sum(weights) for weight in weights]


def fitted_temperature(rows: Sequence[Sequence[float]], wanted: Sequence[int]) -> float:
    """The temperature with the least cross-entropy on rows of log-probabilities (arXiv 1706.04599)."""

    def loss(temperature: float) -> float:
        return -sum(
            math.log(max(probabilities(row, temperature)[i], 1e-12)) for row, i in zip(rows, wanted, strict=True)
        )

    return min(TEMPERATURES, key=loss)


def calibration_error(rows: Sequence[Sequence[float]], wanted: Sequence[int]) -> float:
    """Expected calibration error of rows of probabilities: |confidence - accuracy| in bins of equal width, weighted."""
    bins: dict[int, list[tuple[float, bool]]] = {}
    for row, right in zip(rows, wanted, strict=True):
        confidence = max(row)
        bins.setdefault(min(int(confidence * BINS), BINS - 1), []).append((confidence, row.index(confidence) == right))
    gaps = (abs(sum(c for c, _ in found) - sum(hit for _, hit in found)) for found in bins.values())
    return sum(gaps) / len(rows)
