"""Gradients of optimizer steps: batches of one or several jobs, worked off in micro-batches that the jobs share.

Each row runs through the adapter of its own job, and each loss is divided by the denominator of its own batch. So a
shared micro-batch leaves the same gradients in each job's parameters as a micro-batch of its own. Losses of different
jobs are never summed: one that is not finite stays with its job.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from ..core.jobs import TrainRow
from ..model.resident import ResidentBase
from .backprop.micro_batch import JobRows, MicroBatch, RowLogprobs
from .objectives.objective import LossSums
from .run import TrainingRun
from .work import Interruptible


class Batch:
    """The rows of a job's next optimizer step; once it is ``done``, their gradients are in the job's parameters."""

    def __init__(self, run: TrainingRun, rows: Mapping[int, TrainRow] | None = None) -> None:
        """``rows``, by their indices, take the place of the job's own, where there are such."""
        self.run, self.indices = run, run.schedule.batch(run.step)
        self.rows = {i: run.rows[i] for i in self.indices} if rows is None else rows
        self.lengths = {i: run.length(row) for i, row in self.rows.items()}
        """Tokens that the model reads for each row."""
        self._denominator = sum(run.objective.denominator(row) for row in self.rows.values())
        self.restart()

    def restart(self) -> None:
        """Drop all gradients, those of a micro-batch that did not finish included, and begin anew."""
        self.run.optimizer.zero_grad(set_to_none=True)
        self.left = list(self.indices)
        """Indices of the rows whose gradients are still missing."""
        self._sums: dict[str, float] = {}

    @property
    def done(self) -> bool:
        return not self.left

    @property
    def first_layer(self) -> int:
        """The lowest adapted layer: batches share micro-batches only where it is the same."""
        return self.run.frozen.policy.first_layer

    @property
    def tokens(self) -> int:
        """Tokens of all rows of the batch."""
        return sum(self.lengths[i] for i in self.indices)

    @property
    def means(self) -> dict[str, float]:
        """The batch's metrics, the loss among them."""
        return {name: value / self._denominator for name, value in self._sums.items()}

    def job_rows(self, indices: Sequence[int]) -> JobRows:
        """Some rows of the batch, for a micro-batch."""
        run = self.run
        inputs = [(i, row) for i in indices for row in run.objective.inputs(self.rows[i])]
        return JobRows(
            run.frozen,
            [row for _, row in inputs],
            [run.stacks[i] for i, _ in inputs],
            run.adapter,
            [run.schedule.dropout_seed(run.step, i) for i, _ in inputs],
            run.targets([self.rows[i] for i in indices], [run.stacks[i] for i in indices]),
        )

    def loss(self, indices: Sequence[int], logprobs: RowLogprobs) -> tuple[LossSums, Tensor]:
        """The loss sums of some rows, and their part of the batch's loss (a scalar to call ``backward`` on)."""
        reference = [self.run.reference(self.rows[i], self.run.stacks[i]) for i in indices]
        sums = self.run.objective.loss(logprobs, reference)
        return sums, sums.loss / self._denominator

    def count(self, indices: Sequence[int], sums: LossSums) -> None:
        """Record that the gradients of rows are in the parameters."""
        self.left = [i for i in self.left if i not in indices]
        for name, value in sums.metrics.items():
            self._sums[name] = self._sums.get(name, 0.0) + value


@final
@dataclass(frozen=True, slots=True)
class NeedsGradients:
    """Yielded by a job: it goes on once the gradients of ``batch`` are in its parameters."""

    batch: Batch


Selection = list[tuple[Batch, list[int]]]
"""Batches, each with the indices of its rows that go into a micro-batch."""


def select_rows(batches: Sequence[Batch], aim: int, max_tokens: int) -> tuple[Selection, int]:
    """Rows for a micro-batch of about ``aim`` tokens, and how many tokens they have: one batch after the other.

    There is at least one row, and otherwise at most ``max_tokens`` tokens. What waits is cut evenly, because a small
    micro-batch at the end costs more than its tokens. Taking one batch after the other gives few adapters with many
    rows each, whose matrix products are larger.
    """
    waiting = [(batch, row) for batch in batches for row in batch.left]
    total = sum(batch.lengths[row] for batch, row in waiting)
    even = total / max(1, round(total / aim))
    selected: dict[int, tuple[Batch, list[int]]] = {}
    tokens = 0
    for batch, row in waiting:
        length = batch.lengths[row]
        if tokens and (tokens + length > max_tokens or tokens + length / 2 > even):
            break
        selected.setdefault(id(batch), (batch, []))[1].append(row)
        tokens += length
    return list(selected.values()), tokens


def accumulate_gradients(base: ResidentBase, selection: Selection) -> Interruptible[None]:
    """One micro-batch, forward and backward; its rows count only when all of it has succeeded.

    After a failure the gradients of some layers may be in the parameters: see :meth:`Batch.restart`.
    """
    micro_batch = MicroBatch(base, [batch.job_rows(indices) for batch, indices in selection])
    found = yield from micro_batch.forward(gradients=True)
    with torch.enable_grad():
        losses = [batch.loss(indices, logprobs) for (batch, indices), logprobs in zip(selection, found, strict=True)]
        torch.autograd.backward([part for _, part in losses])
    yield from micro_batch.backward()
    for (batch, indices), (sums, _) in zip(selection, losses, strict=True):
        batch.count(indices, sums)
