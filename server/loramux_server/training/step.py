"""A pass over rows of one or several jobs: how likely the model finds their learned tokens, and the way back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from ..core.jobs import TrainRow
from ..lora.bank import AdapterBank
from ..lora.routing import Block, Entries, Routing, Segment, plan_blocks
from ..lora.trainable import TrainableAdapter, TrainableBlock, TrainedRows
from ..model.attention import PackedAttention
from ..model.resident import ResidentBase
from .head import token_logprobs
from .layers import LayerPlan, Units, Walk

T = TypeVar("T")


class RowRunner:
    """What rows of a job run through beside the base: its frozen stacks, and its way through the layers."""

    def __init__(
        self, base: ResidentBase, bank: AdapterBank, stacks: Sequence[Entries], plan: LayerPlan, cache_bytes: int
    ) -> None:
        self.bank, self.stacks, self.plan = bank, stacks, plan
        self._base = base
        self._lower: dict[tuple[int, ...], Tensor] = {}
        self._budget, self.nbytes = cache_bytes, 0

    def lower(self, rows: Sequence[TrainRow]) -> Units[Tensor]:
        """Input of the first adapted layer, [T, hidden] in float32, or the embeddings when that is layer 0.

        Kept in the host's memory as far as the budget goes.
        """
        ids = [row.input_ids for row in rows]
        missing = list(dict.fromkeys(key for key in ids if key not in self._lower))
        made = dict(zip(missing, (yield from self._compute(missing)), strict=True)) if missing else {}
        device = self._base.device
        found = torch.cat([self._lower[key].to(device) if key in self._lower else made[key] for key in ids])
        for key, hidden in made.items():
            if self.plan.first and self.nbytes + hidden.nbytes <= self._budget:
                self._lower[key] = hidden.to("cpu", copy=True)  # a part of it would keep the whole
                self.nbytes += hidden.nbytes
        return found

    def _compute(self, ids: Sequence[tuple[int, ...]]) -> Units[Sequence[Tensor]]:
        lengths = [len(key) for key in ids]
        tokens = torch.tensor([token for key in ids for token in key], device=self._base.device)
        with torch.no_grad():
            hidden = self._base.embed(tokens).float()
        if self.plan.first:
            walk = Walk(self._base, *_places(lengths, self._base.device), None, hidden)
            hidden = (yield from walk.up(walk.entry, 0, self.plan.first))[0]
        return hidden.split(lengths)


def _places(lengths: Sequence[int], device: torch.device) -> tuple[Tensor, PackedAttention]:
    """Positions [T] of rows laid end to end, and their attention."""
    return torch.cat([torch.arange(n) for n in lengths]).to(device), PackedAttention(lengths, device)


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of one job in a pass: row i over the frozen stack ``stacks[i]`` of its runner, and over ``adapter``.

    ``dropout_seeds`` has one seed per row while training; without any, nothing is dropped.
    """

    runner: RowRunner
    rows: Sequence[TrainRow]
    stacks: Sequence[int]
    adapter: TrainableAdapter | None = None
    dropout_seeds: Sequence[int] = ()

    @property
    def lengths(self) -> list[int]:
        return [len(row.input_ids) for row in self.rows]


@dataclass(frozen=True, slots=True)
class Scores:
    """How likely the model finds the learned tokens of rows."""

    logprobs: Tensor  # [rows], natural, summed over each row's learned tokens; with gradient while training
    tokens: list[int]  # learned tokens of each row
    correct: list[int]  # how many of them were the likeliest


class Pass:
    """One forward over rows of one or several jobs, and its backward.

    Rows are packed end to end, each attending only to itself. The parts must start at the same layer.
    """

    def __init__(self, base: ResidentBase, parts: Sequence[Rows]) -> None:
        self._base, self._parts = base, parts
        self._lengths = [len(row.input_ids) for part in parts for row in part.rows]

    def forward(self, *, gradients: bool = False) -> Units[list[Scores]]:
        """Scores of each part's rows; with ``gradients`` such that a loss of them can run backward to them."""
        base, runner = self._base, self._parts[0].runner
        targets, counts, wanted = self._learned()
        lower = []
        for part in self._parts:
            lower.append((yield from part.runner.lower(part.rows)))
        embeddings = torch.cat(lower)
        with torch.set_grad_enabled(gradients):
            routing = _routing(self._parts)
        self._walk = walk = Walk(base, *_places(self._lengths, base.device), routing, embeddings)
        first = runner.plan.first
        start = embeddings[None] if first else walk.entry
        if gradients:
            dense = sum(self._lengths) <= min(part.runner.plan.dense_tokens for part in self._parts)
            hidden = yield from walk.record(start, first, dense=dense)
        else:
            hidden = yield from walk.up(start, first, len(base.layers))
        with torch.set_grad_enabled(gradients):
            self._top = hidden.detach().requires_grad_(gradients)
            self._chosen = walk.finish(self._top).index_select(0, wanted)
        found = yield from token_logprobs(self._chosen.detach(), targets, base.logits, slopes=gradients)
        self._slopes = found.slopes
        self._logprobs = found.logprobs.requires_grad_(gradients)
        with torch.set_grad_enabled(gradients):
            sums = torch.stack([tokens.sum() for tokens in self._logprobs.split(counts)])
        correct = [sum(marks) for marks in _split(found.best.tolist(), counts)]
        sizes = [len(part.rows) for part in self._parts]
        return [
            Scores(*each) for each in zip(sums.split(sizes), _split(counts, sizes), _split(correct, sizes), strict=True)
        ]

    def backward(self) -> Units[None]:
        """Bring the slopes of the scores, which a loss of them has left there, to the parameters."""
        assert self._logprobs.grad is not None
        assert self._slopes is not None
        torch.autograd.backward(self._chosen, self._logprobs.grad[:, None] * self._slopes)
        assert self._top.grad is not None
        slope = self._top.grad
        del self._chosen, self._slopes, self._top
        yield
        yield from self._walk.back(slope)

    def _learned(self) -> tuple[Tensor, list[int], Tensor]:
        """Learned tokens [n], how many each row has, and the places [n] of the tokens before them."""
        wanted, targets, counts, start = [], [], [], 0
        for part in self._parts:
            for row in part.rows:
                learned = [i for i, marked in enumerate(row.labels) if marked and i]
                wanted += [start + i - 1 for i in learned]
                targets += [row.input_ids[i] for i in learned]
                counts.append(len(learned))
                start += len(row.input_ids)
        device = self._base.device
        return torch.tensor(targets, device=device), counts, torch.tensor(wanted, device=device)


def score(base: ResidentBase, parts: Sequence[Rows]) -> Units[list[Scores]]:
    """Scores of each part's rows, all computed in one forward without gradients."""
    return Pass(base, parts).forward()


def _routing(parts: Sequence[Rows]) -> Routing | None:
    blocks: list[Block] = []
    start = 0
    for part in parts:
        segments = [Segment(n, part.runner.stacks[s]) for n, s in zip(part.lengths, part.stacks, strict=True)]
        if any(s.entries for s in segments):
            before = [Segment(start)] if start else []  # the rows of the parts before, as bare ones
            blocks += plan_blocks(part.runner.bank, [*before, *segments])
        start += sum(part.lengths)
    if any(part.adapter is not None for part in parts):
        blocks.append(
            TrainableBlock(
                [
                    TrainedRows(
                        part.adapter,
                        sum(part.lengths),
                        tuple(zip(part.lengths, part.dropout_seeds, strict=True)) if part.dropout_seeds else (),
                    )
                    for part in parts
                ]
            )
        )
    return Routing(tuple(blocks)) if blocks else None


def _split(values: list[T], sizes: Sequence[int]) -> list[list[T]]:
    """Consecutive parts of ``values``."""
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    return [values[end - n : end] for end, n in zip(ends, sizes, strict=True)]
