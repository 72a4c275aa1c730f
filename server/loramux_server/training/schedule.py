"""Which rows make up which optimizer step, and at what learning rate.

Everything is a function of the seed and the step number, so a job can be resumed at any step.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from ..core.jobs import TrainSpec

MIN_WARMUP = 5
"""Fewest warm-up steps, where the run has at least twice as many."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """The optimizer steps of a job over ``rows`` training rows. Steps and rows are counted from 0."""

    spec: TrainSpec
    rows: int

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(self.rows / self.spec.batch_size)

    @property
    def total_steps(self) -> int:
        """``max_steps`` where it is given: it overrides ``epochs``, and rows repeat as often as needed."""
        if self.spec.max_steps is not None:
            return self.spec.max_steps
        return max(1, round(self.steps_per_epoch * self.spec.epochs))

    def evaluates_after(self, steps: int) -> bool:
        """Whether the held-out rows are evaluated once ``steps`` steps are done, while training goes on."""
        every = self.spec.eval_steps or (self.steps_per_epoch if self.spec.early_stopping_patience else None)
        return every is not None and (steps % every == 0 or steps == self.total_steps)

    def batch(self, step: int) -> list[int]:
        """Indices of the rows of a step. Each epoch has every row once, in a shuffled order of its own."""
        epoch, place = divmod(step, self.steps_per_epoch)
        order = list(range(self.rows))
        random.Random(f"{self.spec.seed}/{epoch}").shuffle(order)
        start = place * self.spec.batch_size
        return order[start : start + self.spec.batch_size]

    def dropout_seed(self, step: int, row: int) -> int:
        """Seed of a row's dropout masks: the same however the batch is split, and after a resume."""
        return random.Random(f"{self.spec.seed}/{step}/{row}").getrandbits(48)

    def answer_draws(self, step: int, row: int) -> random.Random:
        """Random numbers for a row's answer in a step, in an on-policy distillation: the same after a resume."""
        return random.Random(f"{self.spec.seed}/{step}/{row}/answer")

    @property
    def warmup_steps(self) -> int:
        """Steps over which the learning rate rises."""
        if self.spec.warmup_steps is not None:
            return min(self.spec.warmup_steps, self.total_steps)
        if not self.spec.warmup_ratio:
            return 0
        return min(max(MIN_WARMUP, round(self.total_steps * self.spec.warmup_ratio)), self.total_steps // 2)

    def learning_rate(self, step: int) -> float:
        """Linear warm-up from nearly zero, then linear or cosine decay to zero, or constant."""
        total = self.total_steps
        warmup = self.warmup_steps
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
