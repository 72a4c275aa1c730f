"""The base's linears on a GPU: those that share an input are one product, dense or of NF4 values that stay packed.

Nothing here asks for a GPU: bitsandbytes has its operators on every device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from ..cpu.nf4 import block_scales, is_quantized
from ..cpu.prepack import frozen_product
from .frozen_linears import dense_weight, joined_bias, out_features


class DenseLinear:
    """Weights [N, K] in the compute type, joined along N; the packed values that they were made from are let go of."""

    def __init__(self, modules: Sequence[nn.Module], dtype: torch.dtype) -> None:
        self.out_features = out_features(modules)
        self._bias = joined_bias(modules, dtype)
        self._weight = torch.cat([dense_weight(m).to(dtype) for m in modules])
        self.nbytes = self._weight.nbytes
        for module in filter(is_quantized, modules):
            weight: Any = module.weight
            weight.data = weight.data.new_empty(0)

    def __call__(self, x: Tensor) -> Tensor:
        """[T, K] -> [T, N] in the type of x."""
        return linear(x.to(self._weight.dtype), self._weight, self._bias).to(x.dtype)


class _JoinedWeight:
    """NF4 values [N, K] of modules one after another, with a float32 scale for each block."""

    def __init__(self, modules: Sequence[nn.Module], dtype: torch.dtype) -> None:
        """The modules' packed weights become views of the joined ones."""
        weights: list[Any] = [m.weight for m in modules]
        states = [w.quant_state for w in weights]
        self._codes = torch.cat([w.data.flatten() for w in weights]).view(-1, 1)
        for weight, codes in zip(weights, self._codes.split([w.numel() for w in weights]), strict=True):
            weight.data = codes.view(weight.shape)
        self._scales = torch.cat([block_scales(state) for state in states])
        self._shape = [sum(int(state.shape[0]) for state in states), int(states[0].shape[1])]
        self._block, self._kind, self._dtype = states[0].blocksize, states[0].quant_type, dtype
        self.nbytes = self._codes.nbytes + self._scales.nbytes

    def product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        out: Tensor = torch.ops.bitsandbytes.gemm_4bit.default(
            x, self._codes, self._shape, self._scales, self._block, self._kind, bias=bias
        )
        return out

    def dense(self) -> Tensor:
        out: Tensor = torch.ops.bitsandbytes.dequantize_4bit.default(
            self._codes, self._scales, self._block, self._kind, self._shape, self._dtype
        )
        return out


class JoinedLinear:
    """NF4 values that stay packed, joined along N, through bitsandbytes' 4-bit product.

    The scales of double quantisation are worked out once, as bitsandbytes does at every call: 9 % more bytes than
    packed, and one product where there were up to three.
    """

    def __init__(self, modules: Sequence[nn.Module], dtype: torch.dtype) -> None:
        self.out_features = out_features(modules)
        self._bias, self._weight, self._dtype = joined_bias(modules, dtype), _JoinedWeight(modules, dtype), dtype
        self.nbytes = self._weight.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        """[T, K] -> [T, N] in the type of x."""
        return frozen_product(x.to(self._dtype), self._weight, self._bias).to(x.dtype)


def can_join(modules: Sequence[nn.Module]) -> bool:
    """Whether the packed weights of ``modules`` may lie one after another: whole blocks of one kind."""
    if not all(is_quantized(m) for m in modules):
        return False
    weights: list[Any] = [m.weight for m in modules]
    states = [w.quant_state for w in weights]
    kinds = {(state.blocksize, state.quant_type, int(state.shape[1])) for state in states}
    return len(kinds) == 1 and all(state.shape.numel() % state.blocksize == 0 for state in states)
