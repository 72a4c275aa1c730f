"""Gradients through float16 products: scaled into the range of float16 for each product, and back after it.

float16 has no values below 6e-8, and the gradients of a large batch are smaller: cast as they are, they become zeros.
So each product takes its gradient times a power of two, chosen from the largest value on the device. Nothing is
rounded by the scale itself. There is no state and no step to skip, unlike with one scale for the whole loss.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..lora.routed_linear import BaseLinear

TARGET = 4
"""Exponent of the largest value of a scaled gradient: sums over thousands of products stay below 65,504."""
LEAST = -100
"""Exponents below count as this one, so that no scale overflows float32."""


class ScaledGradients:
    """A product in float16 whose input and output are float32, with the gradient of its input."""

    def __init__(self, linear: BaseLinear) -> None:
        self.linear = linear
        self.out_features, self.nbytes = linear.out_features, linear.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        """[T, in] -> [T, sum of outputs], in the type of x."""
        if not (torch.is_grad_enabled() and x.requires_grad and x.dtype == torch.float32):
            return self.linear(x)
        scale = _Scale()
        out: Tensor = _Multiply.apply(self.linear(_Divide.apply(x, scale)), scale)
        return out


class _Scale:
    """The factor of one backward pass through one product: set behind the product, and used before it."""

    factor: Tensor


class _Multiply(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, scale: _Scale) -> Tensor:
        ctx.scale = scale
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        _, exponent = torch.frexp(grads[0].abs().amax())
        shift = TARGET - exponent.clamp(min=LEAST)
        ctx.scale.factor = torch.ldexp(torch.ones((), device=shift.device), shift)
        return grads[0] * ctx.scale.factor, None


class _Divide(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: _Scale) -> Tensor:
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] / ctx.scale.factor, None
