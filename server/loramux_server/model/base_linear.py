"""The base's linears: NF4 values from bitsandbytes, multiplied by a path that we control.

The values are dequantised once (``unpacked``: more memory, far less time) or at every use (``packed``). Both give
bitsandbytes' values to the bit, and gradients reach the input in both. On CUDA the paths are those of
:mod:`.gpu_linear`; on a CPU bitsandbytes may repack weights in place into a layout that loses gradients, so it is not
asked for products.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from bitsandbytes.functional import dequantize_4bit
from torch import Tensor, nn
from torch.nn.functional import linear

from ..cpu.nf4 import WHERE_ALL_IS_PACKED, is_quantized, make_packed_product
from ..cpu.prepack import PlainWeight, frozen_product, prepack
from ..lora.routed_linear import BaseLinear
from .frozen_linears import dense_weight, joined_bias, out_features
from .gpu_linear import DenseLinear, JoinedLinear, can_join
from .scaled_gradients import ScaledGradients


class UnpackedLinear:
    """Weights [N, K] in the compute dtype, joined along N so that one product serves all members.

    Kept in oneDNN's layout where there is one, else plain; and packed for the fewest rows, where reading the weights
    is all the cost.

    The input is cast to the weights' dtype and the output back: a float32 training forward over bfloat16 weights
    runs its large products in bfloat16 and everything else in float32.
    """

    def __init__(self, modules: Sequence[nn.Module], dtype: torch.dtype) -> None:
        self.out_features = out_features(modules)
        self._dtype = dtype
        self._bias = joined_bias(modules, dtype)
        dense = torch.cat([dense_weight(m).to(dtype) for m in modules])
        self._few = make_packed_product(modules, dense, self._bias)
        self._weight = prepack(dense) or PlainWeight(dense)
        self.nbytes = self._weight.nbytes + (self._few.nbytes + self._few.packed_nbytes if self._few else 0)

    def __call__(self, x: Tensor) -> Tensor:
        cast = x.to(self._dtype)
        if self._few is not None and self._few.pays(cast):
            return self._few(cast).to(x.dtype)
        return self._weight(cast, self._bias).to(x.dtype)


class _PackedWeight:
    """NF4, dequantised anew in both directions and never kept."""

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        weight: Any = module.weight
        self._data, self._state, self._dtype = weight.data, weight.quant_state, dtype
        state2 = self._state.state2
        self.nbytes = self._data.nbytes + self._state.absmax.nbytes + (state2.absmax.nbytes if state2 else 0)

    def product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return linear(x, self.dense(), bias)

    def dense(self) -> Tensor:
        return dequantize_4bit(self._data, self._state).to(self._dtype)


class PackedLinear:
    """NF4 kept packed (about 0.52 bytes a weight), dequantised at every use."""

    def __init__(self, modules: Sequence[nn.Module], dtype: torch.dtype) -> None:
        self.out_features = out_features(modules)
        self._dtype = dtype
        self._bias = joined_bias(modules, dtype)
        dense = torch.cat([dense_weight(m).to(dtype) for m in modules])
        self._few = make_packed_product(modules, dense, self._bias)
        self._weights = [_PackedWeight(m, dtype) for m in modules]
        self.nbytes = sum(w.nbytes for w in self._weights)
        if self._few is not None:
            self._few.most *= WHERE_ALL_IS_PACKED
            self.nbytes += self._few.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        cast = x.to(self._dtype)
        if self._few is not None and self._few.pays(cast):
            return self._few(cast).to(x.dtype)
        parts: list[Tensor] = [frozen_product(cast, w, None) for w in self._weights]
        out = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
        return (out if self._bias is None else out + self._bias).to(x.dtype)


class ModuleLinear:
    """The modules as they are: on CUDA, linears that were never quantised or cannot be joined."""

    def __init__(self, modules: Sequence[nn.Module], dtype: torch.dtype) -> None:
        self.out_features = out_features(modules)
        self._modules, self._dtype = list(modules), dtype
        self.nbytes = sum(p.nbytes for m in modules for p in m.parameters())

    def __call__(self, x: Tensor) -> Tensor:
        cast = x.to(self._dtype)
        parts = [m(cast) for m in self._modules]
        return (parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)).to(x.dtype)


def make_linear(modules: Sequence[nn.Module], dtype: torch.dtype, device: torch.device, packed: bool) -> BaseLinear:
    """The right linear for ``modules`` (which share an input) on ``device``."""
    linear = _make_linear(modules, dtype, device, packed)
    return ScaledGradients(linear) if dtype == torch.float16 else linear


def _make_linear(modules: Sequence[nn.Module], dtype: torch.dtype, device: torch.device, packed: bool) -> BaseLinear:
    if device.type != "cpu":
        if not packed:
            return DenseLinear(modules, dtype)
        return JoinedLinear(modules, dtype) if can_join(modules) else ModuleLinear(modules, dtype)
    if packed and all(is_quantized(m) for m in modules):
        return PackedLinear(modules, dtype)
    return UnpackedLinear(modules, dtype)
