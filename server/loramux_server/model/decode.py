"""Calls of ``decode.cpp``: what a decode step on a CPU does between its matrix products."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ..lora.native import NAMES, build
from .kv import PagedAttention

SOURCE = Path(__file__).with_name("decode.cpp")
STEP = 16
"""Values that the functions take at a time: widths must be multiples of it, a head's of twice as many."""


class DecodeKernels:
    """The functions for activations of one type; raises ``LookupError`` where there are none."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        library = build(SOURCE) if dtype in NAMES else None
        if library is None:
            raise LookupError(f"no compiled functions for {dtype}")
        from ctypes import c_float, c_int64, c_void_p

        p, n, f = c_void_p, c_int64, c_float
        self._add_norm = getattr(library, f"add_norm_{NAMES[dtype]}")
        self._add_norm.argtypes = (p, p, p, p, n, n, f)
        self._gate = getattr(library, f"gate_{NAMES[dtype]}")
        self._gate.argtypes = (p, p, n, n)
        self._rotate = getattr(library, f"rotate_{NAMES[dtype]}")
        self._rotate.argtypes = (p, n, n, n, p, p, p, p, f, p, p, p, n)
        self._attend = getattr(library, f"attend_{NAMES[dtype]}")
        self._attend.argtypes = (p, n, n, n, p, p, p, n, p, n, f, n, p, n)
        for function in (self._add_norm, self._gate, self._rotate, self._attend):
            function.restype = None

    def add_norm(self, x: Tensor, delta: Tensor | None, weight: Tensor, eps: float) -> Tensor:
        """Add ``delta`` to x [T, width] in place, and give the root-mean-square norm of the sum times ``weight``."""
        out = torch.empty_like(x)
        given = None if delta is None else delta.data_ptr()
        self._add_norm(x.data_ptr(), given, weight.data_ptr(), out.data_ptr(), *x.shape, eps)
        return out

    def gate(self, gate_up: Tensor) -> Tensor:
        """silu(gate) * up of [T, 2 * width] -> [T, width]."""
        rows, width = gate_up.shape[0], gate_up.shape[1] // 2
        out = gate_up.new_empty(rows, width)
        self._gate(gate_up.data_ptr(), out.data_ptr(), rows, width)
        return out

    def attend(
        self,
        layer: int,
        qkv: Tensor,  # [T, (heads + 2 * kv_heads) * head_dim]; queries and keys are rotated in place
        rotary: tuple[Tensor, Tensor],  # cosine and sine [T, head_dim]
        norms: tuple[Tensor, Tensor, float] | None,  # weights of the query's and the key's norm, epsilon
        attention: PagedAttention,
        *,
        scale: float,
        window: int | None,
    ) -> Tensor:  # [T, heads * head_dim]
        """Put each row's key and value in the cache and attend over its pages."""
        rows = qkv.shape[0]
        keys, values = attention.pool.keys[layer], attention.pool.values[layer]
        _, page, kv_heads, size = keys.shape
        heads = qkv.shape[1] // size - 2 * kv_heads
        shape = (qkv.data_ptr(), heads, kv_heads, size)
        cosine, sine = rotary
        q_norm, k_norm, eps = (norms[0].data_ptr(), norms[1].data_ptr(), norms[2]) if norms else (None, None, 0.0)
        cache = (keys.data_ptr(), values.data_ptr())
        table, context = attention.table, attention.context
        out = qkv.new_empty(rows, heads * size)
        self._rotate(
            *shape, cosine.data_ptr(), sine.data_ptr(), q_norm, k_norm, eps, *cache, attention.slots.data_ptr(), rows
        )
        self._attend(
            *(*shape, *cache, table.data_ptr(), table.shape[1], context.data_ptr(), page, scale, window or 0),
            *(out.data_ptr(), rows),
        )
        return out
