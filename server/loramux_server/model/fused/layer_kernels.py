"""The operators as :class:`~..fused_forward.FusedDecoder` calls them: what :mod:`...cpu.decode` is on a processor."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..kv import PagedAttention, StaticAttention
from .operators import add_norm, gate, rotate_write


@dataclass(frozen=True, slots=True)
class GpuKernels:
    """The functions for activations of one type."""

    dtype: torch.dtype

    def add_norm(self, x: Tensor, delta: Tensor | None, weight: Tensor, eps: float) -> Tensor:
        """Add ``delta`` to x [T, width] in place, and give the root-mean-square norm of the sum times ``weight``."""
        return add_norm(x, delta, weight, eps)

    def gate(self, gate_up: Tensor) -> Tensor:
        """silu(gate) * up of [T, 2 * width] -> [T, width]."""
        return gate(gate_up)

    def step(self, attention: PagedAttention | StaticAttention, cosine: Tensor, sine: Tensor) -> GpuStep:
        """A step whose attention reads pages; cosine and sine [T, rotated] turn its queries and keys."""
        return GpuStep(attention, cosine, sine)


@dataclass(frozen=True, slots=True)
class GpuStep:
    """Attention of one step, layer by layer."""

    attention: PagedAttention | StaticAttention
    cosine: Tensor
    sine: Tensor

    def attend(
        self,
        layer: int,
        qkv: Tensor,  # [T, (heads + 2 * kv_heads) * head_dim]
        norms: tuple[Tensor, Tensor, float] | None,  # weights of the query's and the key's norm, epsilon
        *,
        scale: float,
        window: int | None,
    ) -> Tensor:  # [T, heads * head_dim]
        """Put each row's key and value in the cache and attend over its pages."""
        q_norm, k_norm, eps = norms or (None, None, 0.0)
        pool = self.attention.pool
        keys, values = pool.keys[layer], pool.values[layer]
        q = rotate_write(qkv, self.cosine, self.sine, q_norm, k_norm, eps, self.attention.slots, keys, values)
        return self.attention.read(q, keys, values, scale=scale, window=window, softcap=None).flatten(1)
