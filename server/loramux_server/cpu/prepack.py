"""Weights reordered once for oneDNN's products, which the host otherwise does at every call.

The two operators are torch's own but private (they are what ``torch.compile`` emits when it freezes a model), so they
are used here and nowhere else, and only after a trial: without them everything runs through ``linear``.

Measured over cold layers of the default base on two cores, against ``linear``. AVX512-BF16 and AMX: bfloat16 1.3 to
1.9 times as fast up to 64 rows and 1.2 to 1.5 at 256; float32 1.2 to 1.5 from 2 to 16 rows, no gain beyond 64.
AVX512-BF16 alone: bfloat16 1.4 to 1.9 up to 32 rows, 1.05 to 1.2 beyond; float32 1.7 to 2.8 up to 32, 1.15 to 1.4
beyond.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import linear

DTYPES = (torch.bfloat16, torch.float32)


class PrepackedWeight:
    """A weight [N, K] in the layout of oneDNN's products."""

    def __init__(self, weight: Tensor) -> None:
        """Raises ``RuntimeError`` where this build or processor has no such product for the weight's type."""
        if weight.dtype not in DTYPES:
            raise RuntimeError(f"no reordered product for {weight.dtype}")
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), 16)
        self.nbytes = weight.nbytes
        probe = torch.linspace(-1, 1, 2 * weight.shape[1]).view(2, -1).to(weight.dtype)
        got, expected = self.product(probe, None).float(), linear(probe, weight).float()
        if not torch.allclose(got, expected, rtol=2e-2, atol=2e-2 * float(expected.abs().max() + 1e-6)):
            raise RuntimeError("the reordered product gives something else")
        if not torch.equal(self.dense(), weight):
            raise RuntimeError("the reordered weight is another one")

    def product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Product of x [T, K] with the weight, plus ``bias``: [T, N] in the type of x, without a gradient."""
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._weight, bias, "none", [], "")
        return out

    def dense(self) -> Tensor:
        """The weight in its ordinary layout, [N, K], made anew: about a fiftieth of a product of 512 rows."""
        weight: Tensor = self._weight.to_dense()
        return weight

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """:meth:`product`, with the gradient of x."""
        return frozen_product(x, self, bias)


class FrozenWeight(Protocol):
    """A weight that is never trained and not kept as autograd would need it."""

    def product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Product of x [T, K] with the weight, plus ``bias``: [T, N], without a gradient."""
        ...

    def dense(self) -> Tensor:
        """The weight [N, K], made anew."""
        ...


def frozen_product(x: Tensor, weight: FrozenWeight, bias: Tensor | None) -> Tensor:
    """Product of x and a frozen weight, plus ``bias``, with the gradient of x; nothing is kept for it."""
    if torch.is_grad_enabled() and x.requires_grad:
        out: Tensor = _Product.apply(x, weight, bias)
        return out
    return weight.product(x, bias)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: FrozenWeight, bias: Tensor | None) -> Tensor:
        ctx.weight = weight
        return weight.product(x, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return grads[0] @ ctx.weight.dense(), None, None


class PlainWeight:
    """A weight [N, K] as it is."""

    def __init__(self, weight: Tensor) -> None:
        self._weight, self.nbytes = weight, weight.nbytes

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Product of x [T, K] with the weight, plus ``bias``: [T, N] in the type of x."""
        return linear(x, self._weight, bias)


def prepack(weight: Tensor) -> PrepackedWeight | None:
    """``weight`` reordered, or None where that is not to be had."""
    if weight.device.type != "cpu":
        return None
    try:
        return PrepackedWeight(weight)
    except (RuntimeError, AttributeError):
        return None
