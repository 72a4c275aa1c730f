"""Which adapter lies in which rank rows, who uses it, and what has to move for another one. Numbers only, no tensors.

A slot is a run of rank rows. Placing an adapter changes the table at once and gives the :class:`Swap` that makes the
device agree with it: swaps must be carried out in their order before anything computes with the slots.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Slot:
    """Where an adapter lies: rank rows [lo, hi), its scaling, and the groups of linears that it acts on."""

    digest: str
    lo: int
    hi: int
    scaling: float = 1.0
    groups: frozenset[int] = frozenset()

    @property
    def rank(self) -> int:
        return self.hi - self.lo


Entries = tuple[tuple[Slot, float], ...]
"""A stack as the device knows it: slots and weights, none of which is 0."""


@dataclass(frozen=True, slots=True)
class RowSegment:
    """Consecutive rows of a step that share a stack; without entries, the base's."""

    length: int
    entries: Entries = ()


@dataclass(frozen=True, slots=True)
class Move:
    """Rank rows [lo, hi) go to ``to`` and what follows it, which is below ``lo``."""

    lo: int
    hi: int
    to: int


@dataclass(frozen=True, slots=True)
class Swap:
    """An adapter is loaded into ``slot``, after others were evicted for it and resident ones closed the gaps."""

    slot: Slot
    evicted: tuple[Slot, ...] = ()
    moves: tuple[Move, ...] = ()
    """In the order of their rows; what they go to has no gaps."""


class SlotTable:
    """Resident adapters within a fixed number of rank rows; the least recently used ones are evicted for others.

    An adapter that is in use or pinned is never evicted. Not thread-safe.
    """

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.evictions = 0
        self.pinned: frozenset[str] = frozenset()
        """Digests that are never evicted, whether in use or not."""
        self._slots: OrderedDict[str, Slot] = OrderedDict()  # least recently used first
        self._refs: dict[str, int] = {}

    @property
    def digests(self) -> tuple[str, ...]:
        """Resident adapters, least recently used first."""
        return tuple(self._slots)

    @property
    def used_rows(self) -> int:
        """Rank rows that resident adapters take."""
        return sum(s.rank for s in self._slots.values())

    @property
    def in_use(self) -> int:
        """Sum of all refcounts: 0 when nothing is running."""
        return sum(self._refs.values())

    def refcount(self, digest: str) -> int:
        """How many users an adapter has."""
        return self._refs.get(digest, 0)

    def get(self, digest: str) -> Slot | None:
        """The slot of an adapter, which is the most recently used one now, or None when it is not resident."""
        slot = self._slots.get(digest)
        if slot is not None:
            self._slots.move_to_end(digest)
        return slot

    def slot(self, digest: str) -> Slot:
        """The slot of an adapter that must be resident. Raises KeyError."""
        return self._slots[digest]

    def acquire(self, digest: str) -> None:
        """Count a user of a resident adapter, until :meth:`release`. Raises KeyError."""
        if digest not in self._slots:
            raise KeyError(digest)
        self._refs[digest] = self._refs.get(digest, 0) + 1

    def release(self, digest: str) -> None:
        left = self._refs[digest] - 1
        if left:
            self._refs[digest] = left
        else:
            del self._refs[digest]

    def fits(self, ranks: Mapping[str, int]) -> bool:
        """Whether these adapters (digest -> rank) could all be resident at once beside what is in use or pinned."""
        stay = sum(s.rank for d, s in self._slots.items() if d not in ranks and self._stays(d))
        return stay + sum(ranks.values()) <= self.rows

    def place(self, digest: str, rank: int, scaling: float = 1.0, groups: frozenset[int] = frozenset()) -> Swap | None:
        """Give an adapter that is not resident a slot. None, and nothing changed, when it does not fit now."""
        if not self.fits({digest: rank}):
            return None
        evicted: list[Slot] = []
        while self.used_rows + rank > self.rows:
            evicted.append(self._slots.pop(next(d for d in self._slots if not self._stays(d))))
        self.evictions += len(evicted)
        moves: tuple[Move, ...] = ()
        if (lo := self._find_gap(rank)) is None:
            moves, lo = self._close_gaps(), self.used_rows
        slot = self._slots[digest] = Slot(digest, lo, lo + rank, scaling, groups)
        return Swap(slot, tuple(evicted), moves)

    def drop(self, digest: str) -> bool:
        """Forget an adapter that nobody uses. False when it is in use."""
        if digest in self._refs:
            return False
        self._slots.pop(digest, None)
        return True

    def lose(self, digest: str) -> None:
        """Forget an adapter whose swap failed. Those who acquired it still release it."""
        self._slots.pop(digest, None)

    def _stays(self, digest: str) -> bool:
        return digest in self._refs or digest in self.pinned

    def _close_gaps(self) -> tuple[Move, ...]:
        """Move everything resident to the lowest rows: what is free but scattered becomes one run."""
        moves: list[Move] = []
        at = 0
        for slot in sorted(self._slots.values(), key=lambda s: s.lo):
            if slot.lo != at:
                moves.append(Move(slot.lo, slot.hi, at))
                self._slots[slot.digest] = replace(slot, lo=at, hi=at + slot.rank)
            at += slot.rank
        return tuple(moves)

    def _find_gap(self, rank: int) -> int | None:
        """Lowest free run of ``rank`` rows: what is resident stays dense, and a step's span short."""
        start = 0
        for slot in sorted(self._slots.values(), key=lambda s: s.lo):
            if slot.lo - start >= rank:
                return start
            start = slot.hi
        return start if self.rows - start >= rank else None
