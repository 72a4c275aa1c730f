"""Calls of ``decode.cpp``: what a decode step on a CPU does between its matrix products."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from .native import NAMES, build

SOURCE = Path(__file__).with_name("decode.cpp")
STEP = 16
"""Values that the functions take at a time: widths must be multiples of it, a head's of twice as many."""


class Pool(Protocol):
    """KV pages of all layers: keys and values [layers, pages + 1, page size, kv_heads, head_dim]."""

    keys: Tensor
    values: Tensor


class PagedSpans(Protocol):
    """Where the keys and values of a step's rows lie: new ones in ``slots`` [T], all in the pages of ``table``."""

    @property
    def pool(self) -> Pool: ...
    @property
    def slots(self) -> Tensor: ...
    @property
    def table(self) -> Tensor: ...
    @property
    def context(self) -> Tensor: ...


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

    def step(self, attention: PagedSpans, cosine: Tensor, sine: Tensor) -> DecodeStep:
        """A step whose spans all have length 1; cosine and sine [T, head_dim] turn its queries and keys."""
        return DecodeStep(self, attention, cosine, sine)


class DecodeStep:
    """Attention of one decode step, layer by layer: what all layers share is looked up once."""

    def __init__(self, kernels: DecodeKernels, attention: PagedSpans, cosine: Tensor, sine: Tensor) -> None:
        self._rotate, self._attend = kernels._rotate, kernels._attend
        keys, values = attention.pool.keys, attention.pool.values
        layers, _, self._page, self._kv_heads, self._size = keys.shape
        self._keep = (attention, cosine, sine, keys, values)
        self._caches = [
            tuple(pool.data_ptr() + layer * pool.stride(0) * pool.itemsize for pool in (keys, values))
            for layer in range(layers)
        ]
        self._turn = (cosine.data_ptr(), sine.data_ptr())
        self._slots = attention.slots.data_ptr()
        self._pages = (attention.table.data_ptr(), attention.table.shape[1], attention.context.data_ptr(), self._page)

    def attend(
        self,
        layer: int,
        qkv: Tensor,  # [T, (heads + 2 * kv_heads) * head_dim]; queries and keys are rotated in place
        norms: tuple[Tensor, Tensor, float] | None,  # weights of the query's and the key's norm, epsilon
        *,
        scale: float,
        window: int | None,
    ) -> Tensor:  # [T, heads * head_dim]
        """Put each row's key and value in the cache and attend over its pages."""
        rows, width = qkv.shape
        heads = width // self._size - 2 * self._kv_heads
        shape = (qkv.data_ptr(), heads, self._kv_heads, self._size)
        normed = (norms[0].data_ptr(), norms[1].data_ptr(), norms[2]) if norms else (None, None, 0.0)
        cache = self._caches[layer]
        out = qkv.new_empty(rows, heads * self._size)
        self._rotate(*shape, *self._turn, *normed, *cache, self._slots, rows)
        self._attend(*shape, *cache, *self._pages, scale, window or 0, out.data_ptr(), rows)
        return out
