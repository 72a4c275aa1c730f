"""The gradients of optimiser steps: batches of one or several jobs, worked off in passes that they share.

Every row runs through its own job's adapter, and every job's loss is divided by its own batch, so a pass leaves in
each job's parameters what a pass of its own would. No sum over jobs is ever formed: a loss that is no number stays
with the job that has it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..model.resident import ResidentBase
from .layers import Units
from .objective import Measured
from .run import Run
from .step import Pass, Rows, Scores


class Batch:
    """The rows of a job's next optimiser step. Once it is ``done``, their gradients are in the job's parameters."""

    def __init__(self, run: Run) -> None:
        self.run, self.indices = run, run.order.batch(run.step)
        self.rows = {i: run.command.rows[i] for i in self.indices}
        self._count = sum(run.objective.count(row) for row in self.rows.values())
        self.restart()

    def restart(self) -> None:
        """Begin anew: what a pass left half done is forgotten."""
        self.run.optimizer.zero_grad(set_to_none=True)
        self.left = list(self.indices)
        self._sums: dict[str, float] = {}

    @property
    def done(self) -> bool:
        return not self.left

    @property
    def first(self) -> int:
        """The layer at which its rows start: batches share a pass only where they start alike."""
        return self.run.rows.plan.first

    @property
    def tokens(self) -> int:
        return sum(self.run.lengths[i] for i in self.indices)

    @property
    def means(self) -> dict[str, float]:
        """The figures of the batch, the loss among them."""
        return {name: value / self._count for name, value in self._sums.items()}

    def part(self, indices: Sequence[int]) -> Rows:
        """Some of its rows, as a pass takes them."""
        run = self.run
        texts = [(i, text) for i in indices for text in run.objective.texts(self.rows[i])]
        return Rows(
            run.rows,
            [text for _, text in texts],
            [run.stacks[i] for i, _ in texts],
            run.adapter,
            [run.order.dropout_seed(run.step, i) for i, _ in texts],
        )

    def measure(self, indices: Sequence[int], scores: Scores) -> tuple[Measured, Tensor]:
        """Rows measured, and their share of the batch's loss."""
        reference = [self.run.reference(self.rows[i], self.run.stacks[i]) for i in indices]
        measured = self.run.objective.measure(scores, reference)
        return measured, measured.total / self._count

    def add(self, indices: Sequence[int], measured: Measured) -> None:
        """Note that the gradients of rows are in."""
        self.left = [i for i in self.left if i not in indices]
        for name, value in measured.sums.items():
            self._sums[name] = self._sums.get(name, 0.0) + value


Picked = list[tuple[Batch, list[int]]]
"""Batches, and which of their rows a pass takes."""


def pick(batches: Sequence[Batch], room: int, most: int) -> tuple[Picked, int]:
    """Rows for a pass of about ``room`` tokens, and how many tokens they are: one batch after the other.

    At least one row, otherwise at most ``most`` tokens. What waits is cut into passes of about the same size: a small
    one at the end costs more than it does. Few adapters with many rows each make larger products than many with few.
    """
    waiting = [(batch, row) for batch in batches for row in batch.left]
    total = sum(batch.run.lengths[row] for batch, row in waiting)
    aim = total / max(1, round(total / room))
    picked: dict[int, tuple[Batch, list[int]]] = {}
    tokens = 0
    for batch, row in waiting:
        length = batch.run.lengths[row]
        if tokens and (tokens + length > most or tokens + length / 2 > aim):
            break
        picked.setdefault(id(batch), (batch, []))[1].append(row)
        tokens += length
    return list(picked.values()), tokens


def run_pass(base: ResidentBase, picked: Picked) -> Units[None]:
    """One forward and backward over rows of several batches. One that fails or is given up has counted nothing.

    But gradients of some of its layers may be there then: see :meth:`Batch.restart`.
    """
    work = Pass(base, [batch.part(indices) for batch, indices in picked])
    found = yield from work.forward(gradients=True)
    with torch.enable_grad():
        measured = [batch.measure(indices, scores) for (batch, indices), scores in zip(picked, found, strict=True)]
        torch.autograd.backward([share for _, share in measured])
    yield from work.backward()
    for (batch, indices), (figures, _) in zip(picked, measured, strict=True):
        batch.add(indices, figures)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out; on the host torch has no type of its own for it."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "allocate memory" in str(error)
