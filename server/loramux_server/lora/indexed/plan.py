"""Which rank rows act on which rows of a step, as one array of int32 that the kernels read.

    header   items, tiles, and where the items, the tiles and the rank rows begin; 8 numbers
    items    (first row, rows, first tile, tiles): rows of a step that share a list of rank rows
    tiles    (first row, rows, where its coefficients begin, numbers from one row's to the next's): 16 rank rows
    ranks    16 rows of the bank for each tile; -1 fills up
    coefs    float32 by their bits: weight times scaling, by row and rank row; 0 where a row does not use it

A long segment is cut into items of its own, and all rows of one share a line of coefficients. Shorter ones are put
together; each row then has a line.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ..slots import Entries, RowSegment

RANKS = 16
"""Rank rows of a tile."""
HEADER = 8
SHORT, TALL = 16, 64
"""Rows of an item: of steps that decode, and of those with a segment that is longer than SHORT."""

Array = npt.NDArray[np.int32]


def height_for(segments: Sequence[RowSegment]) -> int:
    """Rows of an item in a step of these segments."""
    return TALL if any(s.entries and s.length > SHORT for s in segments) else SHORT


def most_tiles(rows: int, ranks: int) -> int:
    """Tiles that decode rows need at most, if they use any of a bank's rank rows."""
    return -(-rows // SHORT) * -(-ranks // RANKS)


def longest_plan(rows: int, ranks: int) -> int:
    """Numbers of the largest plan of so many decode rows over a bank of so many rank rows."""
    tiles = most_tiles(rows, ranks)
    return HEADER + 4 * -(-rows // SHORT) + tiles * (4 + RANKS + SHORT * RANKS)


def make_plan(segments: Sequence[RowSegment], height: int) -> Array:
    """The plan of a step whose rows are laid out as ``segments``, in items of up to ``height`` rows."""
    items: list[tuple[int, int, int, int]] = []
    tiles: list[tuple[int, int, int, int]] = []
    ranks: list[Array] = []
    coefficients: list[npt.NDArray[np.float32]] = []
    size = 0
    for row, parts in _items(segments, height):
        length = sum(n for n, _ in parts)
        index, lines = _lines(parts)
        count = len(index) // RANKS
        items.append((row, length, len(tiles), count))
        shared = len(parts) == 1
        for tile in range(count):
            tiles.append((row, length, size, 0 if shared else RANKS))
            part = lines[:, tile * RANKS : (tile + 1) * RANKS]
            coefficients.append(part.ravel())
            size += part.size
        ranks.append(index)
    items_at = HEADER
    tiles_at = items_at + 4 * len(items)
    ranks_at = tiles_at + 4 * len(tiles)
    coefs_at = ranks_at + RANKS * len(tiles)
    plan = np.zeros(coefs_at + size, np.int32)
    plan[:5] = len(items), len(tiles), items_at, tiles_at, ranks_at
    if items:
        plan[items_at:tiles_at] = np.array(items, np.int32).ravel()
        table = np.array(tiles, np.int32)
        table[:, 2] += coefs_at
        plan[tiles_at:ranks_at] = table.ravel()
        plan[ranks_at:coefs_at] = np.concatenate(ranks)
        plan[coefs_at:] = np.concatenate(coefficients).view(np.int32)
    return plan


def _items(segments: Sequence[RowSegment], height: int) -> list[tuple[int, list[tuple[int, Entries]]]]:
    """First rows of the items, and their parts: rows that share a stack, one after another.

    Rows without a stack are in an item only between others, so decode rows make no more items than they fill.
    """
    found: list[tuple[int, list[tuple[int, Entries]]]] = []
    row = room = 0  # room: rows that the last item still takes
    for segment in segments:
        left, alone = segment.length, height > SHORT and segment.length > SHORT
        if alone:
            room = 0
        while left:
            if not room and not segment.entries:
                row, left = row + left, 0
                continue
            if not room:
                found.append((row, []))
                room = height
            n = min(left, room)
            found[-1][1].append((n, segment.entries))
            row, left, room = row + n, left - n, room - n
        if alone:
            room = 0
    for _, parts in found:
        while not parts[-1][1]:
            parts.pop()
    return found


def _lines(parts: Sequence[tuple[int, Entries]]) -> tuple[Array, npt.NDArray[np.float32]]:
    """The rank rows that ``parts`` use, filled up to whole tiles; coefficients, a line for each row or for all."""
    starts: dict[int, int] = {}  # first rank row of a slot -> its place in the list
    index: list[int] = []
    for _, entries in parts:
        for slot, _ in entries:
            if slot.lo not in starts:
                starts[slot.lo] = len(index)
                index += range(slot.lo, slot.hi)
    index += [-1] * (-len(index) % RANKS)
    lines = np.zeros((1 if len(parts) == 1 else sum(n for n, _ in parts), len(index)), np.float32)
    row = 0
    for n, entries in parts:
        for slot, weight in entries:
            at = starts[slot.lo]
            lines[row : row + n, at : at + slot.rank] += weight * slot.scaling
        row += n
    return np.array(index, np.int32), lines
