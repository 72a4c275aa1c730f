"""Which adapters act on which rows of a step, and the arithmetic that applies them.

Cost model, per group with input width i and output widths o (summed): a :class:`BankBlock` over t rows and r rank
rows takes 2tr(members * i + o) operations and reads r(members * i + o) weights. The planner covers

- the decode rows (one each, adapted ones first) by one block over the rank rows of all their adapters, with a
  [t, r] matrix that holds weight times scaling where a row uses a rank and 0 elsewhere: at these sizes reading the
  weights dominates, and each is read once;
- every longer segment by one block per stack entry, or by one common block where that is less work than the calls.

Where :mod:`.kernel` could be built, a :class:`KernelBlock` takes the decode rows and the segments that are too short
for products of their own: its operations are those of each row's own ranks.

So a step costs what the ranks in use cost, rows without an adapter cost nothing, and a change of weight changes only
the matrix. The plan of a step is reused as long as the same rows come with the same stacks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..cpu.routed import RoutedKernel, Routes
from .bank import AdapterBank
from .buffers import upload
from .context import Group
from .slots import Entries, Slot

BLOCK_OVERHEAD = {"cpu": 2000, "cuda": 10_000_000}
"""Row-rank products that take about as long as the calls of one more block. On a processor measured on two AVX512
cores; on a GPU a block's launches outweigh any product of a step."""
GRADIENT_OVERHEAD = {"cpu": 20_000, "cuda": 10_000_000}
"""The same where gradients are recorded: each block then adds to all rows, forward and backward."""

KERNEL_OVERHEAD = 700
"""Row-rank products up to which the compiled kernel is faster than a block of its own: more for each one, no calls."""

SPARSE = 2
"""Rank rows are gathered rather than spanned when their span is over this many times their number."""


@dataclass(frozen=True, slots=True)
class RowSegment:
    """Consecutive rows that share a stack, as (slot, weight) pairs; empty for the base."""

    length: int
    entries: Entries = ()


class Block(Protocol):
    """One contribution to a step."""

    def acts_on(self, group: Group) -> bool: ...

    def add(self, group: Group, x: Tensor, y: Tensor) -> Tensor:
        """Return y [T, out] plus this block's delta of x [T, in]; in place unless gradients are recorded."""
        ...


@dataclass(frozen=True, slots=True)
class Routing:
    """All low-rank contributions of one step."""

    blocks: tuple[Block, ...]

    def add(self, group: Group, x: Tensor, y: Tensor) -> Tensor:
        for block in self.blocks:
            if block.acts_on(group):
                y = block.add(group, x, y)
        return y


class BankBlock:
    """Resident adapters over some rows: rank rows [lo, hi) of the bank, or a gathered list of them."""

    def __init__(self, bank: AdapterBank, rows: slice, slots: Sequence[Slot], scale: Callable[[Slot], Tensor | float]):
        self._bank, self._rows = bank, rows
        self._groups = frozenset().union(*(s.groups for s in slots))
        slots = sorted(slots, key=lambda s: s.lo)
        used, lo, hi = sum(s.rank for s in slots), slots[0].lo, slots[-1].hi
        device, dtype = bank.a[0].device, torch.float32
        self._index: Tensor | None = None
        self._span = slice(lo, hi)
        if hi - lo > SPARSE * used:
            self._index = torch.cat([torch.arange(s.lo, s.hi) for s in slots]).to(device)
        self._gathered: dict[int, tuple[Tensor, list[Tensor]]] = {}
        self._scale: Tensor | float
        self._unused: Tensor | None = None  # bool [t, r]
        if len(slots) == 1 and isinstance(value := scale(slots[0]), float):
            self._scale = value
            return
        matrix = torch.zeros(rows.stop - rows.start, used if self._index is not None else hi - lo, dtype=dtype)
        at = 0
        for slot in slots:
            start = at if self._index is not None else slot.lo - lo
            matrix[:, start : start + slot.rank] = torch.as_tensor(scale(slot)).reshape(-1, 1)
            at += slot.rank
        self._scale = matrix.to(device)  # [t, r]
        # 0 times infinity is no zero: what is broken, or overflows, stays with its own rows.
        if not matrix.all():
            self._unused = self._scale == 0

    def acts_on(self, group: Group) -> bool:
        return group.index in self._groups

    def add(self, group: Group, x: Tensor, y: Tensor) -> Tensor:
        a, bs = self._weights(group.index)
        h = _shrink(x[self._rows], a, self._scale, self._unused)
        if torch.is_grad_enabled():
            delta = torch.cat([part @ b for part, b in zip(h, bs, strict=True)], dim=-1)
            return y + pad(delta, (0, 0, self._rows.start, y.shape[0] - self._rows.stop)).to(y.dtype)
        _expand(h, bs, y[self._rows], group)
        return y

    def _weights(self, group: int) -> tuple[Tensor, list[Tensor]]:
        """A [r, members, in] and B [r, out] of each member."""
        a, bs = self._bank.a[group], self._bank.b[group]
        if self._index is None:
            return a[self._span], [b[self._span] for b in bs]
        if group not in self._gathered:
            self._gathered[group] = a[self._index], [b[self._index] for b in bs]
        return self._gathered[group]


class KernelBlock:
    """Resident adapters over runs of few rows, each row with its own ranks only, through the compiled kernel."""

    def __init__(self, bank: AdapterBank, kernel: RoutedKernel, runs: Sequence[tuple[int, RowSegment]]) -> None:
        """``runs`` are (first row, segment)."""
        self._bank, self._kernel = bank, kernel
        self._groups = frozenset().union(*(slot.groups for _, s in runs for slot, _ in s.entries))
        self._routes = Routes([(at, s.length, [(o.lo, o.rank, w * o.scaling) for o, w in s.entries]) for at, s in runs])

    def acts_on(self, group: Group) -> bool:
        return group.index in self._groups

    def add(self, group: Group, x: Tensor, y: Tensor) -> Tensor:
        self._kernel.add(self._bank.weights[group.index], x, y, self._routes)
        return y


class StaticBlock:
    """Resident adapters over the rows of a decode step, in buffers whose shapes and addresses never change.

    What a captured graph replays: the bank's rows are gathered where the buffers say, so other adapters, weights and
    places in the bank change values only. Ranks and rows that :meth:`fill` leaves over have scale 0 and are masked.
    """

    def __init__(self, bank: AdapterBank, rows: int, ranks: int) -> None:
        self._bank, device = bank, bank.a[0].device
        self._index = torch.zeros(ranks, dtype=torch.long, device=device)
        self._scale = torch.zeros(rows, ranks, device=device)
        self._unused = torch.ones(rows, ranks, dtype=torch.bool, device=device)

    def fill(self, segments: Sequence[RowSegment]) -> None:
        """Route the first rows as ``segments``, which have and use no more rows and ranks than there are."""
        index, scale = torch.zeros(self._index.shape, dtype=torch.long), torch.zeros(self._scale.shape)
        starts: dict[int, int] = {}  # first rank row of a slot -> its place in the index
        used = row = 0
        for segment in segments:
            rows = slice(row, row := row + segment.length)
            for slot, weight in segment.entries:
                if slot.lo not in starts:
                    starts[slot.lo] = used
                    index[used : used + slot.rank] = torch.arange(slot.lo, slot.hi)
                    used += slot.rank
                scale[rows, starts[slot.lo] : starts[slot.lo] + slot.rank] += weight * slot.scaling
        upload(self._index, index)
        upload(self._scale, scale)
        upload(self._unused, scale == 0)

    def acts_on(self, group: Group) -> bool:
        return True

    def add(self, group: Group, x: Tensor, y: Tensor) -> Tensor:
        a = self._bank.a[group.index].index_select(0, self._index)
        bs = [b.index_select(0, self._index) for b in self._bank.b[group.index]]
        _expand(_shrink(x, a, self._scale, self._unused), bs, y, group)
        return y


def used_ranks(segments: Sequence[RowSegment]) -> int:
    """Rank rows that ``segments`` use together."""
    return sum(slot.rank for slot in {slot.lo: slot for s in segments for slot, _ in s.entries}.values())


def _shrink(x: Tensor, a: Tensor, scale: Tensor | float, unused: Tensor | None) -> Tensor:
    """Scaled rank values [members, t, r] of rows x [t, in] under A [r, members, in]."""
    h = (x.to(a.dtype) @ a.flatten(0, 1).T).view(x.shape[0], -1, a.shape[1]).movedim(-1, 0)
    if unused is not None:
        h = h.masked_fill(unused, 0)
    if torch.is_grad_enabled():
        return (h * scale).to(a.dtype)
    # At once into contiguous rows of the right type; the product itself is one of float32.
    return torch.mul(h, scale, out=torch.empty(h.shape, dtype=a.dtype, device=h.device))


def _expand(h: Tensor, bs: Sequence[Tensor], y: Tensor, group: Group) -> None:
    """Add the products of rank values [members, t, r] with each member's B [r, out] to y [t, sum of out]."""
    for part, target, b in zip(h, y.split(group.out_features, dim=-1), bs, strict=True):
        if target.dtype == b.dtype:
            target.addmm_(part, b)
        else:
            target.add_(part @ b)


def plan_blocks(bank: AdapterBank, segments: Sequence[RowSegment]) -> list[Block]:
    """Blocks for rows laid out as ``segments``; segments of length 1 come first, adapted ones before bare ones."""
    blocks: list[Block] = []
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
