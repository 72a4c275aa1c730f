"""The linears that a product is made from, as one: their widths, their values and what they add."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from bitsandbytes.functional import dequantize_4bit
from torch import Tensor, nn

from ..cpu.nf4 import is_quantized


def out_features(modules: Sequence[nn.Module]) -> tuple[int, ...]:
    """Width of each member's output."""
    return tuple(int(m.out_features) for m in modules)  # type: ignore[arg-type]


def dense_weight(module: nn.Module) -> Tensor:
    """The weight [out, in] of a linear as the product sees it: dequantised if NF4."""
    weight: Any = module.weight
    if is_quantized(module):
        return dequantize_4bit(weight.data, weight.quant_state)
    data: Tensor = weight.data
    return data


def joined_bias(modules: Sequence[nn.Module], dtype: torch.dtype) -> Tensor | None:
    """What the members of a group add, [N], zeros where one adds nothing; None where none does."""
    biases: list[Any] = [m.bias for m in modules]
    if all(b is None for b in biases):
        return None
    device = next(b.device for b in biases if b is not None)
    widths = out_features(modules)
    parts = [torch.zeros(n, device=device) if b is None else b.data for b, n in zip(biases, widths, strict=True)]
    return torch.cat(parts).to(dtype)
