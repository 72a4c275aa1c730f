"""The contributions that a step's adapters make, each over some of its rows: by torch's products, or by a kernel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..cpu.routed import RoutedKernel, Routes
from .bank import AdapterBank
from .buffers import upload
from .context import Group
from .indexed.operator import add_indexed, planes_size, programs_of
from .indexed.plan import SHORT, Array, height_for, longest_plan, make_plan, most_tiles
from .slots import RowSegment, Slot

SPARSE = 2
"""Rank rows are gathered rather than spanned when their span is over this many times their number."""


class Block(Protocol):
    """One contribution to a step."""

    def acts_on(self, group: Group) -> bool: ...

    def add(self, group: Group, x: Tensor, y: Tensor) -> Tensor:
        """Return y [T, out] plus this block's delta of x [T, in]; in place unless gradients are recorded."""
        ...


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
        self._segments: Sequence[RowSegment] = ()
        self._index = torch.zeros(ranks, dtype=torch.long, device=device)
        self._scale = torch.zeros(rows, ranks, device=device)
        self._unused = torch.ones(rows, ranks, dtype=torch.bool, device=device)

    def fill(self, segments: Sequence[RowSegment]) -> None:
        """Route the first rows as ``segments``, which have and use no more rows and ranks than there are."""
        # Where each adapter lies is part of a segment, so equal ones are routed equally whatever the bank did.
        if segments == self._segments:
            return
        self._segments = segments
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


class IndexedBlock:
    """Resident adapters over all rows of a step, read where they lie by the kernels of :mod:`.indexed`.

    Its buffers keep their addresses, and the kernels read from them what there is to do: a captured graph holds for
    any stacks. New, it routes nothing.
    """

    def __init__(self, bank: AdapterBank, length: int, tiles: int, height: int, groups: frozenset[int]) -> None:
        """For plans of up to ``length`` numbers and ``tiles`` tiles, in items of ``height`` rows, over ``groups``."""
        device = bank.a[0].device
        self._bank, self._height, self._groups = bank, height, groups
        self._segments: Sequence[RowSegment] = ()
        self._plan = torch.zeros(length, dtype=torch.int32, device=device)
        members = max(len(bs) for bs in bank.b)
        self._planes = torch.empty(planes_size(tiles, members, height, programs_of(device)), device=device)

    @classmethod
    def of(cls, bank: AdapterBank, segments: Sequence[RowSegment]) -> IndexedBlock:
        """The block of one step."""
        height = height_for(segments)
        plan = make_plan(segments, height)
        groups = frozenset[int]().union(*(slot.groups for s in segments for slot, _ in s.entries))
        block = cls(bank, len(plan), int(plan[1]), height, groups)
        block._upload(plan)
        return block

    @classmethod
    def for_decoding(cls, bank: AdapterBank, rows: int) -> IndexedBlock:
        """A block that can be filled for any step of up to ``rows`` rows that decode."""
        length, tiles = longest_plan(rows, bank.rows), most_tiles(rows, bank.rows)
        return cls(bank, length, tiles, SHORT, frozenset(range(len(bank.a))))

    def fill(self, segments: Sequence[RowSegment]) -> None:
        """Route the first rows as ``segments``, and no others."""
        # Where each adapter lies is part of a segment, so equal ones are routed equally whatever the bank did.
        if segments != self._segments:
            self._segments = segments
            self._upload(make_plan(segments, self._height))

    def acts_on(self, group: Group) -> bool:
        return group.index in self._groups

    def add(self, group: Group, x: Tensor, y: Tensor) -> Tensor:
        a, b = self._bank.a[group.index], self._bank.joined_b[group.index]
        add_indexed(y, self._planes, x, a, b, self._plan, group.out_features, self._height)
        return y

    def _upload(self, plan: Array) -> None:
        upload(self._plan[: len(plan)], torch.from_numpy(plan))


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
