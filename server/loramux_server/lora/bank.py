"""The device memory of resident adapters: rank rows of shared buffers.

Every :class:`~.routed_linear.LinearGroup` has one A buffer [rows, members, in] and one B buffer [rows, out] per
member. An adapter of rank r owns the same r consecutive rows in all of them, so one [tokens, rows] matrix of weights
routes a whole step. Loading or dropping an adapter moves no other, unless only scattered rows are free.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.errors import Code, Error
from ..cpu.routed import GroupWeights, load_kernel
from .buffers import Uploads, upload, zeros
from .indexed.operator import usable
from .routed_linear import LinearGroup
from .slots import Move, Slot, SlotTable, Swap

MOVED = 128
"""Rank rows of a buffer that are moved at a time: their memory is kept for it."""


@dataclass(frozen=True, slots=True)
class LoraPair:
    """One module's adapter: delta = scaling * B @ A."""

    a: Tensor  # [r, in]
    b: Tensor  # [out, r]
    scaling: float


@dataclass(frozen=True, slots=True)
class HostAdapter:
    """An adapter's tensors in host memory, by module name."""

    digest: str
    pairs: Mapping[str, LoraPair]

    @property
    def rank(self) -> int:
        return max(int(p.a.shape[0]) for p in self.pairs.values())

    @property
    def scaling(self) -> float:
        """The largest of its modules', by which the others are scaled when they are loaded."""
        return max(p.scaling for p in self.pairs.values()) or 1.0


@dataclass(frozen=True, slots=True)
class PackedAdapter:
    """An adapter in host memory as a bank has it, so that loading it is one copy, see :meth:`AdapterBank.pack`."""

    digest: str
    rank: int
    scaling: float
    groups: frozenset[int]
    """Indices of the groups that it acts on."""
    values: Tensor
    """By group A [rank, members, in] and each member's B [rank, out], flat and one after another."""

    @property
    def nbytes(self) -> int:
        return self.values.nbytes


class AdapterBank(SlotTable):
    """A table of slots and the buffers behind it. It belongs to the thread that owns the model."""

    def __init__(self, groups: Sequence[LinearGroup], rows: int, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(rows)
        # On the host, rows that no adapter ever used cost no memory.
        self.a = [zeros((rows, len(g.names), g.in_features), device, dtype) for g in groups]
        self.joined_b = [zeros((rows * sum(g.out_features),), device, dtype) for g in groups]
        """B of a group's members one after another, of which ``b`` are views."""
        self.b = [
            [part.view(rows, n) for part, n in zip(joined.split(sizes), g.out_features, strict=True)]
            for g, joined in zip(groups, self.joined_b, strict=True)
            for sizes in [[rows * n for n in g.out_features]]
        ]
        self.kernel = load_kernel() if device.type == "cpu" and rows else None
        self.by_index = device.type == "cuda" and rows > 0 and usable(device, dtype)
        """Whether the kernels of :mod:`.indexed` may be used."""
        self.on_host = device.type == "cpu"
        """Whether the buffers are host memory: what is in them need not be there a second time."""
        self.weights = [GroupWeights(g, a, bs) for g, a, bs in zip(groups, self.a, self.b, strict=True)]
        """The same, as the kernel wants it."""
        widest = max((t.shape[1:].numel() for t in self.buffers), default=0)
        self._moved = zeros((min(rows, MOVED) * widest,), device, dtype)
        self._order = torch.zeros(rows, dtype=torch.long, device=device)
        self._where = {name: (g.index, j) for g in groups for j, name in enumerate(g.names)}
        self._uploads = Uploads(device)
        self._row_bytes = sum(t.nbytes for t in self.buffers) // max(rows, 1)

    @staticmethod
    def row_bytes(groups: Sequence[LinearGroup], dtype: torch.dtype) -> int:
        """Bytes that one rank row takes over all groups."""
        return sum(len(g.names) * g.in_features + sum(g.out_features) for g in groups) * dtype.itemsize

    @property
    def buffers(self) -> list[Tensor]:
        """All that is allocated for adapters on the device."""
        return [*self.a, *(b for bs in self.b for b in bs)]

    @property
    def used_bytes(self) -> int:
        """Bytes of the rank rows of resident adapters."""
        return self.nbytes_of(self.used_rows)

    def nbytes_of(self, rank: int) -> int:
        """Bytes of an adapter of this rank on every linear."""
        return rank * self._row_bytes

    def put(self, adapter: HostAdapter) -> Slot | None:
        """Load an adapter, evicting unused ones for it. None when what is in use leaves no capacity now.

        Raises what :meth:`check` raises.
        """
        if (slot := self.get(adapter.digest)) is not None:
            return slot
        packed = self.pack(adapter)
        if (swap := self.plan(packed)) is None:
            return None
        self.apply(swap, packed)
        return swap.slot

    def pack(self, adapter: HostAdapter) -> PackedAdapter:
        """Lay an adapter out as the buffers are, in memory that the device reads directly. For any thread.

        Raises what :meth:`check` raises.
        """
        self.check(adapter)
        groups = frozenset(self._where[name][0] for name in adapter.pairs)
        rank, scaling = adapter.rank, adapter.scaling
        size = self._size(rank, groups)
        values = torch.zeros(size, dtype=self.a[0].dtype, pin_memory=self.a[0].is_cuda)
        packed = PackedAdapter(adapter.digest, rank, scaling, groups, values)
        parts = dict(self._parts(packed, values))
        for name, pair in adapter.pairs.items():
            group, j = self._where[name]
            a, *bs = parts[group]
            r = pair.a.shape[0]
            a[:r, j].copy_(pair.a)
            bs[j][:r].copy_(pair.b.T if pair.scaling == scaling else pair.b.T * (pair.scaling / scaling))
        return packed

    def plan(self, adapter: PackedAdapter) -> Swap | None:
        """Give an adapter that is not resident a slot; None when it does not fit now. See :meth:`apply`."""
        return self.place(adapter.digest, adapter.rank, adapter.scaling, adapter.groups)

    def apply(self, swap: Swap, adapter: PackedAdapter) -> None:
        """Make the buffers agree with a swap. Only the copy of ``adapter`` itself may run out of memory."""
        if swap.moves:
            self._move(swap.moves)
        self._copy(adapter, swap.slot)

    def unpack(self, slot: Slot) -> PackedAdapter:
        """What lies in a slot, as :meth:`pack` had laid it out. For a bank in host memory, whose copies are done."""
        values = torch.empty(self._size(slot.rank, slot.groups), dtype=self.a[0].dtype)
        packed = PackedAdapter(slot.digest, slot.rank, slot.scaling, slot.groups, values)
        rows, parts = self._rows_and_parts(packed, slot, values)
        torch._foreach_copy_(parts, rows)
        return packed

    def check(self, adapter: HostAdapter) -> None:
        """Raise INVALID_ARGUMENT for a module that the base does not have, RESOURCE_EXHAUSTED for too large a rank."""
        unknown = next((n for n in adapter.pairs if n not in self._where), None)
        if unknown is not None or not adapter.pairs:
            raise Error(Code.INVALID_ARGUMENT, f"adapter has no module of this base: {unknown or 'it is empty'}")
        if adapter.rank > self.rows:
            raise Error(
                Code.RESOURCE_EXHAUSTED,
                f"adapter of rank {adapter.rank} cannot fit in the {self.rows} rank rows kept for adapters; "
                "raise --adapter-memory",
            )

    def _move(self, moves: Sequence[Move]) -> None:
        """Close the gaps between rank rows, with memory that is there already.

        All rows from the first gap on go down, in their order. So some at a time are gathered into a buffer and written
        back: none is overwritten before it was read, and the number of calls does not grow with that of the moves.
        """
        rows = torch.tensor([row for move in moves for row in range(move.lo, move.hi)])
        upload(order := self._order[: len(rows)], rows)
        first = moves[0].to
        for tensor in self.buffers:
            width = tensor.shape[1:]
            for at in range(0, len(rows), MOVED):
                part = order[at : at + MOVED]
                held = self._moved[: len(part) * width.numel()].view(len(part), *width)
                torch.index_select(tensor, 0, part, out=held)
                tensor[first + at : first + at + len(part)] = held

    def _copy(self, adapter: PackedAdapter, slot: Slot) -> None:
        values = self._uploads.send(adapter.values)
        torch._foreach_copy_(*self._rows_and_parts(adapter, slot, values))
        rows = slice(slot.lo, slot.hi)
        # What a former owner left there is not this adapter's.
        if others := [t[rows] for g in range(len(self.a)) if g not in adapter.groups for t in self._of(g)]:
            torch._foreach_zero_(others)

    def _rows_and_parts(self, adapter: PackedAdapter, slot: Slot, values: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """The rows of a slot in the buffers that the adapter acts on, and beside them its parts of ``values``."""
        rows: list[Tensor] = []
        parts: list[Tensor] = []
        for group, values_of in self._parts(adapter, values):
            rows += [tensor[slot.lo : slot.hi] for tensor in self._of(group)]
            parts += values_of
        return rows, parts

    def _size(self, rank: int, groups: Iterable[int]) -> int:
        """Values of an adapter of this rank on these groups."""
        return sum(rank * tensor.shape[1:].numel() for group in groups for tensor in self._of(group))

    def _of(self, group: int) -> list[Tensor]:
        """The buffers of a group: A, and B of each member."""
        return [self.a[group], *self.b[group]]

    def _parts(self, adapter: PackedAdapter, values: Tensor) -> Iterator[tuple[int, list[Tensor]]]:
        """The values of an adapter by group, in the shapes of rows of the buffers."""
        at = 0
        for group in sorted(adapter.groups):
            parts = []
            for tensor in self._of(group):
                shape = (adapter.rank, *tensor.shape[1:])
                end = at + math.prod(shape)
                parts.append(values[at:end].view(shape))
                at = end
            yield group, parts
