"""Gates: whether a trained version may take its name over. Pure functions over the figures of the evaluation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

IMPROVES = "improves"
MIN_ACCURACY = "min_accuracy"
ACCURACY = "eval_accuracy"
"""The figure that ``min_accuracy`` looks at."""


@dataclass(frozen=True, slots=True)
class Gate:
    """A condition for promoting a version. ``kind`` empty: none."""

    kind: str = ""
    min_accuracy: float = 0.0

    def __str__(self) -> str:
        return f"{self.kind}:{self.min_accuracy!r}" if self.kind == MIN_ACCURACY else self.kind

    def __bool__(self) -> bool:
        return bool(self.kind)


def make_gate(kind: str, min_accuracy: float) -> Gate:
    """The gate that a caller asked for; ``none`` and nothing are the same."""
    if kind in ("", "none"):
        return Gate()
    return Gate(kind, min_accuracy if kind == MIN_ACCURACY else 0.0)


def read_gate(text: str) -> Gate:
    """The opposite of ``str(gate)``."""
    kind, _, least = text.partition(":")
    return Gate(kind, float(least) if kind == MIN_ACCURACY else 0.0)


def failed_because(gate: Gate, metrics: Mapping[str, float]) -> str:
    """Why ``metrics`` do not pass the gate; empty when they do. A figure that is missing or no number fails."""
    if gate.kind == IMPROVES:
        new = metrics.get("eval_loss", math.nan)
        others = [("the base", metrics.get("base_loss", math.nan))]
        if "current_loss" in metrics:
            others.append(("the current version", metrics["current_loss"]))
        for name, loss in others:
            if not new < loss:
                return f"its held-out loss {new:.4g} is not below {loss:.4g}, that of {name}"
    if gate.kind == MIN_ACCURACY:
        found = metrics.get(ACCURACY, math.nan)
        if not found >= gate.min_accuracy:
            return f"{found:.1%} of its answers on held-out rows are right, {gate.min_accuracy:.1%} were asked for"
    return ""
