"""The routed low-rank sum as two Triton kernels that read a step's plan (:mod:`.plan`) from the device.

Their grids are fixed, so a captured graph holds for any plan: each program walks over its share of the work there is,
and an idle one ends at once. No atomics: every partial sum has a place of its own and sums have one order, so equal
inputs give equal bits.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

RANKS: Any = tl.constexpr(16)
"""Rank rows of a tile: what a tensor core takes at least."""


@triton.jit
def _splits(work, steps, programs, SPLITS):  # type: ignore[no-untyped-def]
    """Parts of the inner dimension, of ``steps`` blocks: as many as give the programs work."""
    return tl.minimum(tl.minimum(tl.maximum(programs // tl.maximum(work, 1), 1), SPLITS), steps)


@triton.jit(do_not_specialize=["members", "programs"])
def shrink(  # type: ignore[no-untyped-def]
    x,
    a,
    planes,
    plan,
    x_stride,
    width,
    members,
    programs,
    HEIGHT: tl.constexpr,  # rows of a tile
    SPLITS: tl.constexpr,  # of the inner dimension at most
    BLOCK: tl.constexpr,  # of the inner dimension
):
    """planes[split, tile, member, row, rank] = x[rows of the tile] times A[ranks of the tile, member], in float32.

    x [T, width], a [bank's rows, members, width].
    """
    tiles, tiles_at, ranks_at = tl.load(plan + 1), tl.load(plan + 3), tl.load(plan + 4)
    steps = tl.cdiv(width, BLOCK)
    splits = _splits(tiles * members, steps, programs, SPLITS)
    part = tl.cdiv(steps, splits) * BLOCK
    rows, ranks, inner = tl.arange(0, HEIGHT), tl.arange(0, RANKS), tl.arange(0, BLOCK)
    for work in range(tl.program_id(0), tiles * members * splits, programs):
        tile, member = work // members % tiles, work % members
        split = work // (members * tiles)
        row0, length = tl.load(plan + tiles_at + 4 * tile), tl.load(plan + tiles_at + 4 * tile + 1)
        index = tl.load(plan + ranks_at + RANKS * tile + ranks).to(tl.int64)
        acc = tl.zeros((HEIGHT, RANKS), tl.float32)
        end = tl.minimum((split + 1) * part, width)
        x_rows = x + (row0 + rows).to(tl.int64)[:, None] * x_stride
        a_rows = a + (index * members + member)[None, :] * width
        for at in range(split * part, end, BLOCK):
            column = at + inner
            xs = tl.load(x_rows + column[None, :], mask=(rows < length)[:, None] & (column < end)[None, :], other=0.0)
            weights = tl.load(a_rows + column[:, None], mask=(index >= 0)[None, :] & (column < end)[:, None], other=0.0)
            acc = tl.dot(xs.to(weights.dtype), weights, acc, input_precision="ieee")
        place = planes + work * HEIGHT * RANKS
        tl.store(place + rows[:, None] * RANKS + ranks[None, :], acc)


@triton.jit(do_not_specialize=["members", "programs", "bank_rows"])
def expand(  # type: ignore[no-untyped-def]
    y,
    b,
    planes,
    plan,
    y_stride,
    width,  # of the input, for the number of splits
    bank_rows,
    n0,
    n1,
    n2,  # widths of the members' outputs; 0 where there is none
    members,
    programs,
    HEIGHT: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK: tl.constexpr,  # of the inner dimension of shrink
    COLUMNS: tl.constexpr,  # of a tile
):
    """y[rows of an item, columns] += the sum over its rank rows of coefficient * shrunk * B.

    y [T, n0 + n1 + n2]; b holds each member's B [bank's rows, n], one after another. A coefficient of 0 keeps out
    whatever the rank row gave: 0 times infinity is no zero.
    """
    items, tiles = tl.load(plan), tl.load(plan + 1)
    items_at, tiles_at, ranks_at = tl.load(plan + 2), tl.load(plan + 3), tl.load(plan + 4)
    splits = _splits(tiles * members, tl.cdiv(width, BLOCK), programs, SPLITS)
    t0, t1 = tl.cdiv(n0, COLUMNS), tl.cdiv(n1, COLUMNS)
    blocks = t0 + t1 + tl.cdiv(n2, COLUMNS)
    rows, ranks, inner = tl.arange(0, HEIGHT), tl.arange(0, RANKS), tl.arange(0, COLUMNS)
    for work in range(tl.program_id(0), items * blocks, programs):
        item, block = work // blocks, work % blocks
        member = (block >= t0).to(tl.int32) + (block >= t0 + t1).to(tl.int32)
        first = tl.where(member > 0, n0, 0) + tl.where(member > 1, n1, 0)  # column of the member
        n = tl.where(member == 0, n0, tl.where(member == 1, n1, n2))
        column = (block - tl.where(member > 0, t0, 0) - tl.where(member > 1, t1, 0)) * COLUMNS + inner
        row0, length = tl.load(plan + items_at + 4 * item), tl.load(plan + items_at + 4 * item + 1)
        tile0, count = tl.load(plan + items_at + 4 * item + 2), tl.load(plan + items_at + 4 * item + 3)
        parts = tl.where(rows < length, splits, 0)
        weights = b + bank_rows.to(tl.int64) * first + column[None, :]
        acc = tl.zeros((HEIGHT, COLUMNS), tl.float32)
        for tile in range(tile0, tile0 + count):
            index = tl.load(plan + ranks_at + RANKS * tile + ranks).to(tl.int64)
            at, step = tl.load(plan + tiles_at + 4 * tile + 2), tl.load(plan + tiles_at + 4 * tile + 3)
            bits = tl.load(plan + at + rows[:, None] * step + ranks[None, :], mask=(rows < length)[:, None], other=0)
            coefficient = bits.to(tl.float32, bitcast=True)
            shrunk = tl.zeros((HEIGHT, RANKS), tl.float32)
            for split in tl.static_range(SPLITS):
                place = ((split * tiles + tile) * members + member) * HEIGHT * RANKS
                plane = planes + place + rows[:, None] * RANKS + ranks[None, :]
                shrunk += tl.load(plane, mask=(parts > split)[:, None], other=0.0)
            values = tl.load(
                weights + index[:, None] * n, mask=(index >= 0)[:, None] & (column < n)[None, :], other=0.0
            )
            scaled = tl.where(coefficient == 0, 0.0, shrunk * coefficient).to(values.dtype)
            acc = tl.dot(scaled, values, acc, input_precision="ieee")
        place = y + (row0 + rows).to(tl.int64)[:, None] * y_stride + first + column[None, :]
        mask = (rows < length)[:, None] & (column < n)[None, :]
        tl.store(place, (tl.load(place, mask=mask, other=0.0).to(tl.float32) + acc).to(y.dtype.element_ty), mask=mask)
