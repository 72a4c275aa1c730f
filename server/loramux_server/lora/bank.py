"""What is resident on the device: adapters in rank rows of shared buffers, pinned while in use.

Every :class:`~.linear.LinearGroup` has one A buffer [rows, members, in] and one B buffer [rows, out] per member. An
adapter of rank r owns the same r consecutive rows in all of them, so one [tokens, rows] matrix of weights routes a
whole step. Loading or dropping an adapter moves no other, unless only scattered rows are free.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..core.errors import Code, Error
from ..cpu.routed import GroupWeights, load_kernel
from .buffers import zeros
from .routed_linear import LinearGroup


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
    def nbytes(self) -> int:
        return sum(p.a.nbytes + p.b.nbytes for p in self.pairs.values())


@dataclass(frozen=True, slots=True)
class Slot:
    """Where an adapter lies: rank rows [lo, hi), its scaling, and the groups it acts on."""

    digest: str
    lo: int
    hi: int
    scaling: float
    groups: frozenset[int]

    @property
    def rank(self) -> int:
        return self.hi - self.lo


class AdapterBank:
    """Resident adapters within a fixed number of rank rows; least recently used unpinned ones make room.

    Not thread-safe: it belongs to the thread that owns the model.
    """

    def __init__(self, groups: Sequence[LinearGroup], rows: int, device: torch.device, dtype: torch.dtype) -> None:
        self.rows = rows
        self.evictions = 0
        # On the host, rows that no adapter ever used cost no memory.
        self.a = [zeros((rows, len(g.names), g.in_features), device, dtype) for g in groups]
        self.b = [[zeros((rows, n), device, dtype) for n in g.out_features] for g in groups]
        self.kernel = load_kernel() if device.type == "cpu" and rows else None
        self.weights = [GroupWeights(g, a, bs) for g, a, bs in zip(groups, self.a, self.b, strict=True)]
        """The same, as the kernel wants it."""
        self._where = {name: (g.index, j) for g in groups for j, name in enumerate(g.names)}
        self._slots: OrderedDict[str, Slot] = OrderedDict()  # least recently used first
        self._pins: dict[str, int] = {}
        self.kept: frozenset[str] = frozenset()
        """Digests that are never evicted, whether in use or not."""
        self._row_bytes = sum(t.nbytes for t in [*self.a, *(t for bs in self.b for t in bs)]) // max(rows, 1)
        self.on_change: Callable[[], None] = lambda: None

    @staticmethod
    def row_bytes(groups: Sequence[LinearGroup], dtype: torch.dtype) -> int:
        """Bytes that one rank row takes over all groups."""
        return sum(len(g.names) * g.in_features + sum(g.out_features) for g in groups) * dtype.itemsize

    @property
    def used_bytes(self) -> int:
        return self.nbytes_of(sum(s.rank for s in self._slots.values()))

    def nbytes_of(self, rank: int) -> int:
        """Bytes of an adapter of this rank on every linear."""
        return rank * self._row_bytes

    @property
    def digests(self) -> tuple[str, ...]:
        """Resident adapters, least recently used first."""
        return tuple(self._slots)

    def get(self, digest: str) -> Slot | None:
        """The slot of an adapter, or None when it is not resident."""
        slot = self._slots.get(digest)
        if slot is not None:
            self._slots.move_to_end(digest)
        return slot

    def slot(self, digest: str) -> Slot:
        """The slot of an adapter that must be resident. Raises KeyError."""
        return self._slots[digest]

    def pin(self, digest: str) -> None:
        """Keep a resident adapter until :meth:`unpin` has been called as often."""
        if digest not in self._slots:
            raise KeyError(digest)
        self._pins[digest] = self._pins.get(digest, 0) + 1

    def unpin(self, digest: str) -> None:
        left = self._pins[digest] - 1
        if left:
            self._pins[digest] = left
        else:
            del self._pins[digest]

    @property
    def pinned(self) -> int:
        """Pins held: 0 when nothing is running."""
        return sum(self._pins.values())

    def put(self, adapter: HostAdapter) -> Slot | None:
        """Copy an adapter into the bank, dropping unused ones for it. None when what is in use leaves no room now.

        Raises what :meth:`check` raises.
        """
        if (slot := self.get(adapter.digest)) is not None:
            return slot
        self.check(adapter)
        lo = self._make_room(adapter.rank)
        if lo is None:
            return None
        slot = self._copy(adapter, lo)
        self._slots[adapter.digest] = slot
        self.on_change()
        return slot

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

    def has_room(self, ranks: Mapping[str, int]) -> bool:
        """Whether these adapters (digest -> rank) could all be resident at once beside what is in use or kept."""
        stay = sum(s.rank for d, s in self._slots.items() if d not in ranks and (d in self._pins or d in self.kept))
        return stay + sum(ranks.values()) <= self.rows

    def drop(self, digest: str) -> bool:
        """Forget an adapter that nothing pins. False when it is in use."""
        if digest in self._pins:
            return False
        if self._slots.pop(digest, None) is not None:
            self.on_change()
        return True

    def _make_room(self, rank: int) -> int | None:
        """First of ``rank`` free rows, or None, and nothing dropped, if what is pinned leaves too few."""
        stay = {d for d in self._slots if d in self._pins or d in self.kept}
        if sum(self._slots[d].rank for d in stay) + rank > self.rows:
            return None
        while sum(s.rank for s in self._slots.values()) + rank > self.rows:
            del self._slots[next(d for d in self._slots if d not in stay)]
            self.evictions += 1
            self.on_change()
        if (lo := self._find_gap(rank)) is None:
            self._close_gaps()
            lo = self._find_gap(rank)
        return lo

    def _close_gaps(self) -> None:
        """Move everything resident to the lowest rows: what is free but scattered becomes one run."""
        tensors = [*self.a, *(b for bs in self.b for b in bs)]
        at = 0
        for slot in sorted(self._slots.values(), key=lambda s: s.lo):
            if slot.lo != at:
                for tensor in tensors:
                    tensor[at : at + slot.rank] = tensor[slot.lo : slot.hi].clone()
                self._slots[slot.digest] = replace(slot, lo=at, hi=at + slot.rank)
            at += slot.rank
        self.on_change()

    def _find_gap(self, rank: int) -> int | None:
        """Lowest free run of ``rank`` rows: what is resident stays dense, and a step's span short."""
        start = 0
        for slot in sorted(self._slots.values(), key=lambda s: s.lo):
            if slot.lo - start >= rank:
                return start
            start = slot.hi
        return start if self.rows - start >= rank else None

    def _copy(self, adapter: HostAdapter, lo: int) -> Slot:
        rank = adapter.rank
        hi = lo + rank
        scaling = max(p.scaling for p in adapter.pairs.values()) or 1.0
        for name, (group, j) in self._where.items():
            a, b = self.a[group][lo:hi, j], self.b[group][j][lo:hi]
            pair = adapter.pairs.get(name)
            r = 0 if pair is None else pair.a.shape[0]
            if r < rank:  # what a former owner left there is not this adapter's
                a[r:].zero_()
                b[r:].zero_()
            if pair is not None:
                a[:r].copy_(pair.a)
                b[:r].copy_(pair.b.T if pair.scaling == scaling else pair.b.T * (pair.scaling / scaling))
        return Slot(adapter.digest, lo, hi, scaling, frozenset(self._where[n][0] for n in adapter.pairs))
