"""Weights reordered once for oneDNN's products, which the host otherwise does at every call.

The two operators are torch's own but private (they are what ``torch.compile`` emits when it freezes a model), so they
are used here and nowhere else, and only after a trial: without them everything runs through ``linear``.

Measured on two AVX512-BF16/AMX cores over 30 cold layers of the default base, against ``linear``: bfloat16 1.3 to 1.9
times as fast up to 64 rows and 1.2 to 1.5 at 256; float32 1.2 to 1.5 from 2 to 16 rows, slower at 1 and no gain
beyond 64.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear

ROWS = {torch.bfloat16: range(1, 257), torch.float32: range(2, 33)}
"""Numbers of input rows for which the reordered product is the faster one."""


class PrepackedWeight:
    """A weight [N, K] in the layout of oneDNN's products."""

    def __init__(self, weight: Tensor) -> None:
        """Raises ``RuntimeError`` where this build or processor has no such product for the weight's type."""
        if weight.dtype not in ROWS:
            raise RuntimeError(f"no reordered product for {weight.dtype}")
        self._rows = ROWS[weight.dtype]
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), 16)
        self.nbytes = weight.nbytes
        probe = torch.linspace(-1, 1, 2 * weight.shape[1]).view(2, -1).to(weight.dtype)
        got, expected = self(probe, None).float(), linear(probe, weight).float()
        if not torch.allclose(got, expected, rtol=2e-2, atol=2e-2 * float(expected.abs().max() + 1e-6)):
            raise RuntimeError("the reordered product gives something else")

    def pays(self, x: Tensor) -> bool:
        """Whether this product is the faster one for ``x`` [T, K], and may be used: it records no gradient."""
        return x.shape[0] in self._rows and not (torch.is_grad_enabled() and x.requires_grad)

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Product of x [T, K] with the weight, plus ``bias``: [T, N] in the type of x."""
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._weight, bias, "none", [], "")
        return out


def prepack(weight: Tensor) -> PrepackedWeight | None:
    """``weight`` reordered, or None where that is not to be had."""
    if weight.device.type != "cpu":
        return None
    try:
        return PrepackedWeight(weight)
    except (RuntimeError, AttributeError):
        return None
