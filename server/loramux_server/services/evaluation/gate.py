"""Gates: whether a trained version may take its name over. Pure functions over the figures of the evaluation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

IMPROVES = "improves"
MIN_ACCURACY = "min_accuracy"
ROUNDING = 1e-4
"""Share of a loss by which another must be lower to be an improvement: less is how sums were rounded."""
CONTAINED, EXACT = "contained", "exact"
ACCURACY, EXACT_MATCH = "eval_accuracy", "eval_exact_match"
"""The figures that ``min_accuracy`` looks at: answers that are right, and those that are the expected text."""


@dataclass(frozen=True, slots=True)
class Gate:
    """A condition for promoting a version. ``kind`` empty: none."""

    kind: str = ""
    min_accuracy: float = 0.0
    match: str = ""
    """With ``min_accuracy``: ``contained`` or ``exact``."""

    def __str__(self) -> str:
        if self.kind != MIN_ACCURACY:
            return self.kind
        exact = f":{EXACT}" if self.match == EXACT else ""
        return f"{self.kind}:{self.min_accuracy!r}{exact}"

    def __bool__(self) -> bool:
        return bool(self.kind)


def kind_of_gate(asked: str, held_out: bool) -> str:
    """The kind of gate of a job: ``improves`` where none is asked for and there are held-out rows to measure."""
    return asked or (IMPROVES if held_out else "")


def make_gate(kind: str, min_accuracy: float, match: str = "") -> Gate:
    """The gate that a caller asked for; ``none`` and nothing are the same, and so are ``contained`` and nothing."""
    if kind in ("", "none"):
        return Gate()
    return Gate(kind, min_accuracy, match or CONTAINED) if kind == MIN_ACCURACY else Gate(kind)


def read_gate(text: str) -> Gate:
    """The opposite of ``str(gate)``."""
    kind, *more = text.split(":")
    return Gate(kind, float(more[0]), EXACT if EXACT in more else CONTAINED) if kind == MIN_ACCURACY else Gate(kind)


def failed_because(gate: Gate, metrics: Mapping[str, float]) -> str:
    """Why ``metrics`` do not pass the gate; empty when they do. A figure that is missing or no number fails."""
    if gate.kind == IMPROVES:
        new = metrics.get("eval_loss", math.nan)
        others = [("the base", metrics.get("base_loss", math.nan))]
        for name, figure in (
            ("the current version", "current_loss"),
            ("the version that it started from", "init_loss"),
        ):
            if figure in metrics:
                others.append((name, metrics[figure]))
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
