"""The kernels as operators of torch, which graphs, tapes and profiles see."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

GATE_BLOCK = 1024
"""Values that a program of the gate takes."""


def _kernels() -> ModuleType:
    from . import kernels  # needs Triton, which torch brings where it has CUDA

    return kernels


def _block(width: int) -> int:
    """The power of two that holds ``width``, as kernels want their blocks."""
    return 1 << (width - 1).bit_length()


@torch.library.custom_op("loramux::add_norm", mutates_args=("x",))
def add_norm(x: Tensor, delta: Tensor | None, weight: Tensor, eps: float) -> Tensor:
    """Add ``delta`` to x [T, width] in place; give the root-mean-square norm of the sum times ``weight`` [width]."""
    rows, width = x.shape
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    block = _block(width)
    added = x if delta is None else delta
    _kernels().add_norm[(rows,)](
        *(x, added, weight, out, x.stride(0), added.stride(0), width, eps, delta is not None, block),
        num_warps=min(16, max(1, block // 256)),
    )
    return out


@add_norm.register_fake
def _(x: Tensor, delta: Tensor | None, weight: Tensor, eps: float) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@torch.library.custom_op("loramux::gate", mutates_args=())
def gate(gate_up: Tensor) -> Tensor:
    """silu(gate) * up of [T, 2 * width] -> [T, width]."""
    rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    out = gate_up.new_empty(rows, width)
    block = min(GATE_BLOCK, _block(width))
    _kernels().gate[(rows, -(-width // block))](gate_up, out, gate_up.stride(0), width, block, num_warps=4)
    return out


@gate.register_fake
def _(gate_up: Tensor) -> Tensor:
    return gate_up.new_empty(gate_up.shape[0], gate_up.shape[1] // 2)


@torch.library.custom_op("loramux::rotate_write", mutates_args=("keys", "values"))
def rotate_write(
    qkv: Tensor,
    cosine: Tensor,
    sine: Tensor,
    q_norm: Tensor | None,
    k_norm: Tensor | None,
    eps: float,
    slots: Tensor,
    keys: Tensor,
    values: Tensor,
) -> Tensor:
    """Rotated queries [T, heads, D] of qkv [T, (heads + 2 * kv_heads) * D]; keys and values go to their ``slots`` [T].

    cosine and sine [T, R] rotate the first R of each head's D values. With norms [D], queries and keys are normed by
    head before. keys and values are a layer's pages [pages, page size, kv_heads, D], in the type of qkv.
    """
    kv_heads, size = keys.shape[2:]
    heads = qkv.shape[1] // size - 2 * kv_heads
    half = cosine.shape[1] // 2
    rest = size - 2 * half
    out = qkv.new_empty(len(qkv), heads, size)
    _kernels().rotate_write[(len(qkv), heads + 2 * kv_heads)](
        *(qkv, cosine, sine, q_norm if q_norm is not None else qkv, k_norm if k_norm is not None else qkv),
        *(slots, keys, values, out, qkv.stride(0), heads, kv_heads, eps, q_norm is not None),
        *(size, half, _block(half), _block(rest) if rest else 0),
        num_warps=1,
    )
    return out


@rotate_write.register_fake
def _(
    qkv: Tensor,
    cosine: Tensor,
    sine: Tensor,
    q_norm: Tensor | None,
    k_norm: Tensor | None,
    eps: float,
    slots: Tensor,
    keys: Tensor,
    values: Tensor,
) -> Tensor:
    kv_heads, size = keys.shape[2:]
    return qkv.new_empty(len(qkv), qkv.shape[1] // size - 2 * kv_heads, size)
