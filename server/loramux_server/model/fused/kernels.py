"""The kernels, in Triton. Sums and products are in float32, and a result is rounded once, where it is stored."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def add_norm(  # type: ignore[no-untyped-def]
    x,
    delta,
    weight,
    out,
    x_stride,
    delta_stride,
    width,
    eps,
    ADD: tl.constexpr,
    BLOCK: tl.constexpr,  # at least the width
):
    """Where ADD is set x [T, width] += delta; out = x's root-mean-square norm times weight. A program takes a row."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    mask = column < width
    values = tl.load(x + row * x_stride + column, mask=mask, other=0.0).to(tl.float32)
    if ADD:
        added = values + tl.load(delta + row * delta_stride + column, mask=mask, other=0.0).to(tl.float32)
        rounded = added.to(x.dtype.element_ty)
        tl.store(x + row * x_stride + column, rounded, mask=mask)
        values = rounded.to(tl.float32)
    scale = tl.rsqrt(tl.sum(values * values) / width + eps)
    normed = values * scale * tl.load(weight + column, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + row * width + column, normed.to(out.dtype.element_ty), mask=mask)


@triton.jit
def gate(gate_up, out, stride, width, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Silu of the first half of gate_up [T, 2 * width] times the second, to out [T, width]."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = column < width
    gates = tl.load(gate_up + row * stride + column, mask=mask, other=0.0).to(tl.float32)
    ups = tl.load(gate_up + row * stride + width + column, mask=mask, other=0.0).to(tl.float32)
    product = gates / (1.0 + tl.exp(-gates)) * ups
    tl.store(out + row * width + column, product.to(out.dtype.element_ty), mask=mask)


@triton.jit
def rotate_write(  # type: ignore[no-untyped-def]
    qkv,
    cosine,
    sine,
    q_weight,
    k_weight,
    slots,
    keys,
    values,
    q_out,
    stride,
    heads,
    kv_heads,
    eps,
    NORMED: tl.constexpr,
    SIZE: tl.constexpr,  # of a head
    HALF: tl.constexpr,  # half of what is rotated of it
    BLOCK: tl.constexpr,  # at least HALF
    REST: tl.constexpr,  # at least what is not rotated; 0: all is
):
    """Queries of qkv [T, (heads + 2 * kv_heads) * SIZE] to q_out [T, heads, SIZE], keys and values to their slots.

    Queries and keys are normed by head first where NORMED is set, and rotated by cosine and sine [T, 2 * HALF]. Pages
    of keys and values are [slots, kv_heads, SIZE]. A program takes a head of a token.
    """
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    source = qkv + row * stride + head * SIZE
    place = tl.load(slots + row) * kv_heads * SIZE
    inner = tl.arange(0, BLOCK)
    mask = inner < HALF
    first = tl.load(source + inner, mask=mask, other=0.0).to(tl.float32)
    second = tl.load(source + HALF + inner, mask=mask, other=0.0).to(tl.float32)
    if REST:
        after = 2 * HALF + tl.arange(0, REST)
        rest = tl.load(source + after, mask=after < SIZE, other=0.0).to(tl.float32)
    if head < heads + kv_heads:
        if NORMED:
            total = tl.sum(first * first) + tl.sum(second * second)
            if REST:
                total += tl.sum(rest * rest)
            scale = tl.rsqrt(total / SIZE + eps)
            weight = q_weight
            if head >= heads:
                weight = k_weight
            first *= scale * tl.load(weight + inner, mask=mask, other=0.0).to(tl.float32)
            second *= scale * tl.load(weight + HALF + inner, mask=mask, other=0.0).to(tl.float32)
            if REST:
                rest *= scale * tl.load(weight + after, mask=after < SIZE, other=0.0).to(tl.float32)
        angle = row * 2 * HALF + inner
        cos1 = tl.load(cosine + angle, mask=mask, other=0.0).to(tl.float32)
        sin1 = tl.load(sine + angle, mask=mask, other=0.0).to(tl.float32)
        cos2 = tl.load(cosine + HALF + angle, mask=mask, other=0.0).to(tl.float32)
        sin2 = tl.load(sine + HALF + angle, mask=mask, other=0.0).to(tl.float32)
        turned = first * cos1 - second * sin1
        second = second * cos2 + first * sin2
        first = turned
    target = q_out + (row * heads + head) * SIZE
    if head >= heads + kv_heads:
        target = values + place + (head - heads - kv_heads) * SIZE
    elif head >= heads:
        target = keys + place + (head - heads) * SIZE
    kind = q_out.dtype.element_ty
    tl.store(target + inner, first.to(kind), mask=mask)
    tl.store(target + HALF + inner, second.to(kind), mask=mask)
    if REST:
        tl.store(target + after, rest.to(kind), mask=after < SIZE)
