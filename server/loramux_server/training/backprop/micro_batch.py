"""A micro-batch: rows of one or several jobs in one forward and backward pass."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from ...core.jobs import TrainRow
from ...lora.blocks import Block
from ...lora.buffers import on_device
from ...lora.routing import Routing, plan_blocks
from ...lora.slots import RowSegment
from ...lora.trainable import AdapterRows, TrainableAdapter, TrainableBlock
from ...model.resident import ResidentBase
from ..work import PAUSE, Interruptible
from .frozen_model import FrozenModel
from .head import TokenLogprobs, chunk_rows, token_logprobs
from .layerwise import LayerwisePass

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class JobRows:
    """Rows of one job in a micro-batch. Row i runs over the frozen stack ``frozen.stacks[stacks[i]]``.

    ``adapter`` is added to all of them; None: the frozen model alone. ``dropout_seeds`` has a seed for each row while
    training; without seeds there is no dropout. ``targets`` has the teacher's final hidden states [loss tokens, hidden]
    for each row, on any device; empty: the rows' own tokens are the targets.
    """

    frozen: FrozenModel
    rows: Sequence[TrainRow]
    stacks: Sequence[int]
    adapter: TrainableAdapter | None = None
    dropout_seeds: Sequence[int] = ()
    targets: Sequence[Tensor] = ()

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row."""
        return [len(row.input_ids) for row in self.rows]


@dataclass(frozen=True, slots=True)
class RowLogprobs:
    """How well the model predicts the loss tokens of rows, or what a teacher predicts there (see :mod:`.head`)."""

    logprobs: Tensor  # [rows], natural, summed over a row's loss tokens; requires grad while training
    tokens: list[int]  # loss tokens of each row
    correct: list[int]  # how many of them were the model's likeliest token, or at how many the teacher's likeliest was


class MicroBatch:
    """One forward pass over rows of one or several jobs, and its backward pass.

    Rows are packed end to end, T tokens in total, and attend only to themselves. All jobs must have the same first
    adapted layer.
    """

    def __init__(self, base: ResidentBase, jobs: Sequence[JobRows]) -> None:
        self._base, self._jobs = base, jobs
        self._lengths = [length for job in jobs for length in job.lengths]

    def forward(self, *, gradients: bool = False) -> Interruptible[list[RowLogprobs]]:
        """Log-probabilities for each job's rows.

        With ``gradients`` they are leaves: call ``backward`` on a loss of them, then :meth:`backward` here.
        """
        hidden = yield from self.predict(gradients=gradients)
        counts = [len(_in_loss(row)) for job in self._jobs for row in job.rows]
        found = yield from self._compare(hidden, gradients)
        self._hidden_gradients = [part.gradients for part in found]
        self._logprobs = torch.cat([part.logprobs for part in found]).requires_grad_(gradients)
        with torch.set_grad_enabled(gradients):
            sums = torch.stack([tokens.sum() for tokens in self._logprobs.split(counts)])
        correct = [sum(marks) for marks in _split(torch.cat([part.best for part in found]).tolist(), counts)]
        sizes = [len(job.rows) for job in self._jobs]
        per_job = zip(sums.split(sizes), _split(counts, sizes), _split(correct, sizes), strict=True)
        return [RowLogprobs(*each) for each in per_job]

    def predict(self, *, gradients: bool = False) -> Interruptible[Tensor]:
        """Final hidden states [n, hidden] at the positions that predict the n loss tokens, in order."""
        base, policies = self._base, [job.frozen.policy for job in self._jobs]
        positions = self._predicting_positions()
        inputs = []
        for job in self._jobs:
            inputs.append((yield from job.frozen.first_layer_input(job.rows)))
        packed = torch.cat(inputs)
        with torch.set_grad_enabled(gradients):
            routing = routing_of(self._jobs)
        self._layers = layers = LayerwisePass(base, self._lengths, routing, packed)
        first = policies[0].first_layer
        start = packed[None] if first else layers.input
        if gradients:
            checkpointing = not all(policy.keeps(self._lengths) for policy in policies)
            hidden = yield from layers.forward_for_backward(start, first, checkpointing=checkpointing)
        else:
            hidden = yield from layers.forward(start, first, len(base.layers))
        with torch.set_grad_enabled(gradients):
            self._last_output = hidden.detach().requires_grad_(gradients)
            self._predicting = layers.final_hidden(self._last_output).index_select(0, positions)  # [n, hidden]
        return self._predicting.detach()

    def backward(self) -> Interruptible[None]:
        """Backpropagate from the gradients that a loss left on the log-probabilities to the adapters' parameters."""
        assert self._logprobs.grad is not None
        gradients = torch.cat([part for part in self._hidden_gradients if part is not None])
        grad_hidden = self._logprobs.grad[:, None] * gradients
        torch.autograd.backward(self._predicting, grad_hidden.to(self._predicting.dtype))
        grad = self._last_output.grad
        assert grad is not None
        del self._predicting, self._hidden_gradients, self._last_output
        yield PAUSE
        yield from self._layers.backward(grad)

    def _compare(self, hidden: Tensor, gradients: bool) -> Interruptible[list[TokenLogprobs]]:
        """The states ``hidden`` beside their targets; neighbouring jobs of one kind share chunks of logits."""
        base, found = self._base, []
        chunk = chunk_rows(int(base.model.config.vocab_size), base.device)
        for taught, jobs in itertools.groupby(self._jobs, lambda job: bool(job.targets)):
            targets = torch.cat([torch.cat(list(job.targets)) if taught else self._target_ids(job) for job in jobs])
            rows, hidden = hidden[: len(targets)], hidden[len(targets) :]
            part = yield from token_logprobs(
                rows, targets, base.logits, gradients=gradients, rows=chunk, teacher=taught
            )
            found.append(part)
        return found

    def _predicting_positions(self) -> Tensor:
        """The packed positions [n] that predict the loss tokens."""
        positions, start = [], 0
        for job in self._jobs:
            for row in job.rows:
                positions += [start + i - 1 for i in _in_loss(row)]
                start += len(row.input_ids)
        return on_device(positions, self._base.device, torch.long)

    def _target_ids(self, job: JobRows) -> Tensor:
        """Ids of the loss tokens of a job."""
        return on_device([row.input_ids[i] for row in job.rows for i in _in_loss(row)], self._base.device, torch.long)


def row_logprobs(base: ResidentBase, jobs: Sequence[JobRows]) -> Interruptible[list[RowLogprobs]]:
    """Log-probabilities for each job's rows, from one forward pass without gradients."""
    return MicroBatch(base, jobs).forward()


def final_states(base: ResidentBase, job: JobRows) -> Interruptible[list[Tensor]]:
    """Final hidden states [loss tokens, hidden] that predict each row's loss tokens, without gradients."""
    hidden = yield from MicroBatch(base, [job]).predict()
    return list(hidden.split([len(_in_loss(row)) for row in job.rows]))


def _in_loss(row: TrainRow) -> list[int]:
    """Indices of a row's loss tokens; nothing comes before the first token to predict it from."""
    return [i for i, label in enumerate(row.labels) if label and i]


def routing_of(jobs: Sequence[JobRows]) -> Routing | None:
    """Each row through its frozen stack, and through its job's adapter; None where all rows run on the bare base."""
    blocks: list[Block] = []
    start = 0
    for job in jobs:
        segments = [RowSegment(n, job.frozen.stacks[s]) for n, s in zip(job.lengths, job.stacks, strict=True)]
        if any(s.entries for s in segments):
            before = [RowSegment(start)] if start else []  # rows of the jobs before have no entries in this bank
            blocks += plan_blocks(job.frozen.bank, [*before, *segments])
        start += sum(job.lengths)
    if any(job.adapter is not None for job in jobs):
        blocks.append(TrainableBlock([_adapter_rows(job) for job in jobs]))
    return Routing(tuple(blocks)) if blocks else None


def _adapter_rows(job: JobRows) -> AdapterRows:
    dropout = tuple(zip(job.lengths, job.dropout_seeds, strict=True)) if job.dropout_seeds else ()
    return AdapterRows(job.adapter, sum(job.lengths), dropout)


def _split(values: list[T], sizes: Sequence[int]) -> list[list[T]]:
    """Consecutive slices of ``values`` with these sizes."""
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    return [values[end - n : end] for end, n in zip(ends, sizes, strict=True)]
