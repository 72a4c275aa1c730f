"""Which rows make up which step, and at what learning rate.

Pure functions of the step number, so that a run can be taken up again anywhere.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from ..core.jobs import TrainRow, TrainSpec

MIN_WARMUP = 5
"""Fewest warm-up steps, as long as that is at most half of the run."""


@dataclass(frozen=True, slots=True)
class Order:
    """The order of a run over ``rows`` rows."""

    spec: TrainSpec
    rows: int

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(self.rows / self.spec.batch_size)

    @property
    def total_steps(self) -> int:
        """``max_steps`` where it is given, whatever ``epochs`` says: rows are gone through as often as that takes."""
        if self.spec.max_steps is not None:
            return self.spec.max_steps
        return max(1, round(self.steps_per_epoch * self.spec.epochs))

    def evaluates_after(self, step: int) -> bool:
        """Whether the held-out rows are measured once ``step`` steps are done, while the run goes on."""
        every = self.spec.eval_steps or (self.steps_per_epoch if self.spec.early_stopping_patience else None)
        return every is not None and (step % every == 0 or step == self.total_steps)

    def batch(self, step: int) -> list[int]:
        """Row numbers of a step (counted from 0). Every epoch has its own shuffle, and every row once."""
        epoch, place = divmod(step, self.steps_per_epoch)
        order = list(range(self.rows))
        random.Random(f"{self.spec.seed}/{epoch}").shuffle(order)
        start = place * self.spec.batch_size
        return order[start : start + self.spec.batch_size]

    def dropout_seed(self, step: int, row: int) -> int:
        """Seed of a row's dropout masks: the same however the batch is split, and in a run that is taken up again."""
        return random.Random(f"{self.spec.seed}/{step}/{row}").getrandbits(48)

    def learning_rate(self, step: int) -> float:
        """Warm-up from nearly nothing, then linear or cosine decay to zero, or constant."""
        total = self.total_steps
        warmup = (
            min(max(MIN_WARMUP, round(total * self.spec.warmup_ratio)), total // 2) if self.spec.warmup_ratio else 0
        )
        peak = self.spec.learning_rate
        if step < warmup:
            return peak * (step + 1) / warmup
        left = (total - step) / max(1, total - warmup)
        match self.spec.lr_scheduler:
            case "linear":
                return peak * left
            case "cosine":
                return peak * 0.5 * (1 - math.cos(math.pi * left))
            case _:
                return peak


def assign_stacks(rows: Sequence[TrainRow], stacks: int) -> list[int]:
    """The frozen stack under each row: its own, else the rows without one take turns."""
    found: list[int] = []
    turn = 0
    for row in rows:
        if row.stack is not None:
            found.append(row.stack)
        else:
            found.append(turn % stacks)
            turn += 1
    return found
