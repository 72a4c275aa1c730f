"""One forward over rows of a job, with the loss at their learned tokens."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ..core.jobs import TrainRow
from ..lora.bank import AdapterBank
from ..lora.routing import Block, Entries, Routing, Segment, plan_blocks
from ..lora.trainable import TrainableAdapter, TrainableBlock
from ..model.attention import PackedAttention
from ..model.resident import ResidentBase
from .layers import LayerPlan


@dataclass(frozen=True, slots=True)
class Loss:
    """Summed cross-entropy (natural log) over ``tokens`` learned tokens, and how many were the likeliest."""

    total: Tensor  # scalar, with gradient while training
    tokens: int
    correct: int


class RowRunner:
    """Runs rows packed end to end, each attending only to itself, over its frozen stack and the job's adapter."""

    def __init__(
        self,
        base: ResidentBase,
        bank: AdapterBank,
        stacks: Sequence[Entries],
        plan: LayerPlan,
        cache_bytes: int,
    ) -> None:
        self._base, self._bank, self._stacks, self._plan = base, bank, stacks, plan
        self._lower: OrderedDict[tuple[int, ...], Tensor] = OrderedDict()
        self._budget, self.nbytes = cache_bytes, 0

    def loss(
        self,
        rows: Sequence[TrainRow],
        stacks: Sequence[int],
        adapter: TrainableAdapter | None,
        dropout_seeds: Sequence[int] = (),
    ) -> Loss:
        """Loss of ``rows``, row i over stack ``stacks[i]``; ``adapter`` None leaves the job's own out.

        ``dropout_seeds`` has one seed per row while training; without any, nothing is dropped.
        """
        device = self._base.device
        lengths = [len(r.input_ids) for r in rows]
        starts = [sum(lengths[:i]) for i in range(len(lengths))]
        positions = torch.cat([torch.arange(n) for n in lengths]).to(device)
        wanted, targets = [], []
        for row, start in zip(rows, starts, strict=True):
            for i, learned in enumerate(row.labels):
                if learned and i:
                    wanted.append(start + i - 1)
                    targets.append(row.input_ids[i])
        attention = PackedAttention(lengths, device)
        blocks: list[Block] = []
        segments = [Segment(n, self._stacks[s]) for n, s in zip(lengths, stacks, strict=True)]
        if any(s.entries for s in segments):
            blocks += plan_blocks(self._bank, segments)
        if adapter is not None:
            dropped = list(zip(lengths, dropout_seeds, strict=True)) if dropout_seeds else []
            blocks.append(TrainableBlock(adapter, slice(0, sum(lengths)), dropped))
        with self._plan.upper():
            logits = self._base.forward(
                positions,
                attention,
                Routing(tuple(blocks)) if blocks else None,
                torch.tensor(wanted, device=device),
                embeddings=torch.cat([self._hidden(row) for row in rows]),
            )
        target = torch.tensor(targets, device=device)
        total = cross_entropy(logits, target, reduction="sum")
        return Loss(total, len(targets), int((logits.detach().argmax(-1) == target).sum()))

    def _hidden(self, row: TrainRow) -> Tensor:
        """What the frozen layers below make of a row, [T, hidden]; kept as far as the budget goes."""
        key = row.input_ids
        if (found := self._lower.get(key)) is not None:
            return found
        device, length = self._base.device, len(key)
        hidden = self._plan.lower(
            torch.tensor(key, device=device), torch.arange(length, device=device), PackedAttention([length], device)
        )
        if self._plan.first and self.nbytes + hidden.nbytes <= self._budget:
            self._lower[key] = hidden
            self.nbytes += hidden.nbytes
        return hidden
