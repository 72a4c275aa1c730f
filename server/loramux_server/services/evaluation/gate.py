"""Gates: whether a trained version may take its name over. Pure functions over the metrics of the evaluation."""

from __future__ import annotations

import math
from collections.abc import Mapping

from ...core.jobs import EXACT, IMPROVES, MIN_ACCURACY, Gate

ROUNDING = 1e-4
"""Share of a loss by which another must be lower to be an improvement: less is how sums were rounded."""
ACCURACY, EXACT_MATCH = "eval_accuracy", "eval_exact_match"
"""The metrics that ``min_accuracy`` looks at: answers that are right, and those that are the expected text."""


def failed_because(gate: Gate, metrics: Mapping[str, float]) -> str:
    """Why ``metrics`` do not pass the gate; empty when they do. A metric that is missing or no number fails."""
    if gate.kind == IMPROVES:
        new = metrics.get("eval_loss", math.nan)
        others = [("the base", metrics.get("base_loss", math.nan))]
        for name, metric in (
            ("the current version", "current_loss"),
            ("the version that it started from", "init_loss"),
        ):
            if metric in metrics:
                others.append((name, metrics[metric]))
        for name, loss in others:
            if not new < loss - ROUNDING * abs(loss):
                return f"its held-out loss {new:.4g} is not below {loss:.4g}, that of {name}"
    if gate.kind == MIN_ACCURACY:
        exact = gate.match == EXACT
        found = metrics.get(EXACT_MATCH if exact else ACCURACY, math.nan)
        if not found >= gate.min_accuracy:
            what = "are the expected text" if exact else "are right"
            return f"{found:.1%} of its answers on held-out rows {what}, {gate.min_accuracy:.1%} were asked for"
    return ""
