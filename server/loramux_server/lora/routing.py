"""Which adapters act on which rows of a step, and the arithmetic that applies them.

Cost model, per group with input width i and output widths o (summed): a :class:`BankBlock` over t rows and r rank
rows takes 2tr(members * i + o) operations and reads r(members * i + o) weights. The planner covers

- the decode rows (one each, adapted ones first) by one block over the rank rows of all their adapters, with a
  [t, r] matrix that holds weight times scaling where a row uses a rank and 0 elsewhere: at these sizes reading the
  weights dominates, and each is read once;
- every longer segment by one block per stack entry, or by one common block where that is less work than the calls.

On a processor where :mod:`..cpu.routed` could be built, a :class:`KernelBlock` takes the decode rows and the segments
that are too short for products of their own: its operations are those of each row's own ranks. On a GPU where the
kernels of :mod:`.indexed` run, one :class:`IndexedBlock` takes all rows, unless gradients are recorded.

So a step costs what the ranks in use cost, rows without an adapter cost nothing, and a change of weight changes only
the matrix. The plan of a step is reused as long as the same rows come with the same stacks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .bank import AdapterBank
from .blocks import BankBlock, Block, IndexedBlock, KernelBlock
from .context import Group
from .slots import RowSegment, Slot

BLOCK_OVERHEAD = {"cpu": 2000, "cuda": 10_000_000}
"""Row-rank products that take about as long as the calls of one more block. On a processor measured on two AVX512
cores; on a GPU a block's launches outweigh any product of a step."""
GRADIENT_OVERHEAD = {"cpu": 20_000, "cuda": 10_000_000}
"""The same where gradients are recorded: each block then adds to all rows, forward and backward."""

KERNEL_OVERHEAD = 700
"""Row-rank products up to which the compiled kernel is faster than a block of its own: more for each one, no calls."""


@dataclass(frozen=True, slots=True)
class Routing:
    """All low-rank contributions of one step."""

    blocks: tuple[Block, ...]

    def add(self, group: Group, x: Tensor, y: Tensor) -> Tensor:
        for block in self.blocks:
            if block.acts_on(group):
                y = block.add(group, x, y)
        return y


def plan_blocks(bank: AdapterBank, segments: Sequence[RowSegment]) -> list[Block]:
    """Blocks for rows laid out as ``segments``; segments of length 1 come first, adapted ones before bare ones."""
    blocks: list[Block] = []
    if bank.by_index and not torch.is_grad_enabled():
        return [IndexedBlock.of(bank, segments)] if any(s.entries for s in segments) else []
    if bank.kernel is not None and bank.kernel.takes(bank.a[0].dtype, bank.a[0].dtype) and not torch.is_grad_enabled():
        runs, segments = _split_short(segments)
        if runs:
            blocks.append(KernelBlock(bank, bank.kernel, runs))
    decode = [s for s in segments if s.length == 1]
    adapted = [s for s in decode if s.entries]
    if any(s.entries for s in decode[len(adapted) :]):
        raise ValueError("adapted decode rows must come before bare ones")
    if adapted:
        blocks.append(_joint_block(bank, 0, adapted))
    start = len(decode)
    for run in _runs(segments[len(decode) :]):
        rows = sum(s.length for s in run)
        if run[0].entries:
            blocks += _run_blocks(bank, start, run)
        start += rows
    return blocks


def _split_short(segments: Sequence[RowSegment]) -> tuple[list[tuple[int, RowSegment]], list[RowSegment]]:
    """Segments for the kernel with their first rows, and all segments with bare ones in the places of these."""
    short: list[tuple[int, RowSegment]] = []
    left: list[RowSegment] = []
    start = 0
    for segment in segments:
        ranks = sum(slot.rank for slot, _ in segment.entries)
        if ranks and segment.length * ranks <= KERNEL_OVERHEAD * len(segment.entries):
            short.append((start, segment))
            left.append(RowSegment(segment.length))
        else:
            left.append(segment)
        start += segment.length
    return short, left


def _runs(segments: Sequence[RowSegment]) -> list[list[RowSegment]]:
    """Split into runs of adapted and of bare segments."""
    runs: list[list[RowSegment]] = []
    for segment in segments:
        if runs and bool(runs[-1][0].entries) == bool(segment.entries):
            runs[-1].append(segment)
        else:
            runs.append([segment])
    return runs


def _run_blocks(bank: AdapterBank, start: int, run: Sequence[RowSegment]) -> list[Block]:
    if one_block_pays(run, bank.a[0].device.type):
        return [_joint_block(bank, start, run)]
    blocks: list[Block] = []
    for segment in run:
        rows = slice(start, start + segment.length)
        for slot, weight in segment.entries:
            scale = weight * slot.scaling
            blocks.append(BankBlock(bank, rows, [slot], lambda _, scale=scale: scale))  # type: ignore[misc]
        start += segment.length
    return blocks


def one_block_pays(run: Sequence[RowSegment], device: str) -> bool:
    """Whether all adapters of a run over all of its rows take less time than each over its own rows."""
    slots = {slot for s in run for slot, _ in s.entries}
    joint = sum(s.length for s in run) * sum(slot.rank for slot in slots)
    overhead = (GRADIENT_OVERHEAD if torch.is_grad_enabled() else BLOCK_OVERHEAD)[device]
    return joint + overhead <= sum(s.length * slot.rank + overhead for s in run for slot, _ in s.entries)


def _joint_block(bank: AdapterBank, start: int, segments: Sequence[RowSegment]) -> Block:
    lengths = torch.tensor([s.length for s in segments])
    weights: dict[Slot, list[float]] = {}
    for i, segment in enumerate(segments):
        for slot, weight in segment.entries:
            weights.setdefault(slot, [0.0] * len(segments))[i] += weight * slot.scaling

    def scale(slot: Slot) -> Tensor:
        return torch.tensor(weights[slot], dtype=torch.float32).repeat_interleave(lengths)

    return BankBlock(bank, slice(start, start + int(lengths.sum())), list(weights), scale)
