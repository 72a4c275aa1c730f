"""Products of few rows with NF4 weights that stay packed, through ``nf4.cpp``."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import c_int64, c_void_p
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.functional import QuantState, dequantize_blockwise
from torch import Tensor, nn

from .native import NAMES, build

SOURCE = Path(__file__).with_name("nf4.cpp")
ROWS = {torch.bfloat16: 4, torch.float32: 16}
"""Most input rows for which this is the fastest product (measured beside oneDNN's on two AVX512/AMX cores)."""
ROWS_IN_TILES = 64
"""The same in bfloat16 where the processor has tiles."""
WHERE_ALL_IS_PACKED = 8
"""How many times as many rows it is taken for where the other way is to unpack all weights first."""
BLOCK = 64
PROBES = 4


def is_quantized(module: nn.Module) -> bool:
    """Whether ``module`` is a bitsandbytes 4-bit linear with its state."""
    return isinstance(getattr(getattr(module, "weight", None), "quant_state", None), QuantState)


def _use_tiles(library: Any) -> bool:
    """Let bfloat16 products go through tiles, if there are any."""
    return bool(library.nf4_use_tiles(1))


class PackedProduct:
    """x [T, in] -> y [T, sum of outputs] for NF4 linears over one input, side by side."""

    def __init__(self, modules: Sequence[nn.Module], dense: Tensor, bias: Tensor | None) -> None:
        """``dense`` [sum of outputs, in] holds the values in the compute type, ``bias`` [sum of outputs] what is added.

        The packed weights are joined, and the modules' become views of that. Raises ``LookupError`` where there is no
        such product, or where it gives other values than ``dense``.
        """
        library: Any = build(SOURCE) if dense.dtype in ROWS and all(is_quantized(m) for m in modules) else None
        function = getattr(library, f"nf4_{NAMES.get(dense.dtype)}", None)
        weights: list[Any] = [m.weight for m in modules]
        if function is None or any(w.quant_state.blocksize != BLOCK for w in weights) or dense.shape[1] % BLOCK:
            raise LookupError("no product for packed weights here")
        self._codes = torch.cat([w.data.flatten() for w in weights])
        for weight, codes in zip(weights, self._codes.split([w.numel() for w in weights]), strict=True):
            weight.data = codes.view(weight.shape)
        self._scales = torch.cat([block_scales(w.quant_state) for w in weights])
        self._values = weights[0].quant_state.code.float().contiguous()
        self._bias = None if bias is None else bias.float().contiguous()
        self.nbytes, self.packed_nbytes = self._scales.nbytes, self._codes.nbytes
        """Of the scales, and of the packed weights."""
        function.argtypes = (*(c_void_p,) * 3, *(c_int64,) * 2, *(c_void_p,) * 2, *(c_int64,) * 2, c_void_p, c_int64)
        function.restype = None
        self._function = function
        self._fixed = (
            *(self._codes.data_ptr(), self._scales.data_ptr(), self._values.data_ptr()),
            *(*dense.shape, None if self._bias is None else self._bias.data_ptr()),
        )
        self._width = dense.shape[0]
        self.most = ROWS_IN_TILES if dense.dtype == torch.bfloat16 and _use_tiles(library) else ROWS[dense.dtype]
        """Most input rows that it is taken for."""
        # One-hot rows give the weights themselves.
        columns = torch.linspace(0, dense.shape[1] - 1, PROBES).long()
        probe = torch.zeros(PROBES, dense.shape[1], dtype=dense.dtype)
        probe[torch.arange(PROBES), columns] = 1
        expected = dense[:, columns].T if bias is None else (dense[:, columns].T.float() + bias.float()).to(dense.dtype)
        if not torch.equal(self(probe), expected):
            raise LookupError("packed weights give other values")

    def pays(self, x: Tensor) -> bool:
        """Whether this is the fastest product for x [T, in], and may be used: it records no gradient."""
        return x.shape[0] <= self.most and not (torch.is_grad_enabled() and x.requires_grad)

    def __call__(self, x: Tensor) -> Tensor:
        """[T, in] -> [T, sum of outputs], of the same type."""
        x = x if x.stride(-1) == 1 else x.contiguous()
        y = x.new_empty(x.shape[0], self._width)
        self._function(*self._fixed, x.data_ptr(), x.stride(0), x.shape[0], y.data_ptr(), self._width)
        return y


def block_scales(state: QuantState) -> Tensor:
    """A float32 for each block of weights."""
    scales = state.absmax
    if state.nested:
        scales = dequantize_blockwise(scales, state.state2) + state.offset
    return scales.float().flatten()


def make_packed_product(modules: Sequence[nn.Module], dense: Tensor, bias: Tensor | None) -> PackedProduct | None:
    """For NF4 linears whose values are ``dense`` [sum of outputs, in]; None where this machine has no such product."""
    try:
        return PackedProduct(modules, dense, bias)
    except LookupError:
        return None
