"""One forward over rows of one or several jobs: how likely the model finds their learned tokens."""

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
from .layers import LayerPlan

T = TypeVar("T")


class RowRunner:
    """What rows of a job run through beside the base: its frozen stacks, and its way through the layers."""

    def __init__(
        self, base: ResidentBase, bank: AdapterBank, stacks: Sequence[Entries], plan: LayerPlan, cache_bytes: int
    ) -> None:
        self.bank, self.stacks, self.plan = bank, stacks, plan
        self._device = base.device
        self._lower: dict[tuple[int, ...], Tensor] = {}
        self._budget, self.nbytes = cache_bytes, 0

    def lower(self, rows: Sequence[TrainRow]) -> Tensor:
        """What the frozen layers below make of rows, [T, hidden]; kept as far as the budget goes."""
        ids = [row.input_ids for row in rows]
        missing = list(dict.fromkeys(key for key in ids if key not in self._lower))
        made = dict(zip(missing, self._compute(missing), strict=True)) if missing else {}
        found = torch.cat([self._lower[key] if key in self._lower else made[key] for key in ids])
        for key, hidden in made.items():
            if self.plan.first and self.nbytes + hidden.nbytes <= self._budget:
                self._lower[key] = hidden.clone()  # a part of it would keep the whole
                self.nbytes += hidden.nbytes
        return found

    def _compute(self, ids: Sequence[tuple[int, ...]]) -> Sequence[Tensor]:
        lengths = [len(key) for key in ids]
        tokens = torch.tensor([token for key in ids for token in key], device=self._device)
        positions = torch.cat([torch.arange(n) for n in lengths]).to(self._device)
        return self.plan.lower(tokens, positions, PackedAttention(lengths, self._device)).split(lengths)


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


def score(base: ResidentBase, parts: Sequence[Rows]) -> list[Scores]:
    """Scores of each part's rows, all computed in one forward.

    Rows are packed end to end, each attending only to itself. The parts must start at the same layer.
    """
    rows = [row for part in parts for row in part.rows]
    lengths = [len(row.input_ids) for row in rows]
    positions = torch.cat([torch.arange(n) for n in lengths]).to(base.device)
    wanted, targets, counts, start = [], [], [], 0
    for row in rows:
        learned = [i for i, marked in enumerate(row.labels) if marked and i]
        wanted += [start + i - 1 for i in learned]
        targets += [row.input_ids[i] for i in learned]
        counts.append(len(learned))
        start += len(row.input_ids)
    embeddings = torch.cat([part.runner.lower(part.rows) for part in parts])
    dense = min(part.runner.plan.dense_tokens for part in parts)
    with parts[0].runner.plan.upper(checkpointed=torch.is_grad_enabled() and len(positions) > dense):
        hidden = base.hidden(positions, PackedAttention(lengths, base.device), _routing(parts), embeddings)
    chosen = hidden.index_select(0, torch.tensor(wanted, device=base.device))
    logprobs, best = token_logprobs(chosen, torch.tensor(targets, device=base.device), base.logits)
    sums = torch.stack([tokens.sum() for tokens in logprobs.split(counts)])
    correct = [sum(found) for found in _split(best.tolist(), counts)]
    sizes = [len(part.rows) for part in parts]
    return [
        Scores(*found) for found in zip(sums.split(sizes), _split(counts, sizes), _split(correct, sizes), strict=True)
    ]


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
