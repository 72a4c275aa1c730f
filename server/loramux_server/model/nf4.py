"""Products of few rows with NF4 weights that stay packed, through ``nf4.cpp``."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import c_int64, c_void_p
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.functional import QuantState, dequantize_blockwise
from torch import Tensor, nn

from ..lora.native import NAMES, build

SOURCE = Path(__file__).with_name("nf4.cpp")
ROWS = {torch.bfloat16: 4, torch.float32: 16}
"""Most input rows for which this is the fastest product (measured beside oneDNN's on two AVX512/AMX cores)."""
MOST_PACKED_ROWS = 32
"""Input rows up to which packed weights are looked up for each, rather than unpacked once for all (measured as
``ROWS``)."""
BLOCK = 64
PROBES = 4


def is_quantized(module: nn.Module) -> bool:
    """Whether ``module`` is a bitsandbytes 4-bit linear with its state."""
    return isinstance(getattr(getattr(module, "weight", None), "quant_state", None), QuantState)


class PackedProduct:
    """x [T, in] -> columns of y [T, out] for one NF4 linear."""

    def __init__(self, module: nn.Module, dense: Tensor, bias: Tensor | None) -> None:
        """``dense`` [out, in] holds the module's values in the compute type, ``bias`` [out] what is added.

        Raises ``LookupError`` where there is no such product, or where it gives other values than ``dense``.
        """
        library = build(SOURCE) if dense.dtype in ROWS else None
        function = getattr(library, f"nf4_{NAMES.get(dense.dtype)}", None)
        weight: Any = module.weight
        state = weight.quant_state
        if function is None or state.blocksize != BLOCK or dense.shape[1] % BLOCK:
            raise LookupError("no product for packed weights here")
        scales = state.absmax
        if state.nested:
            scales = dequantize_blockwise(scales, state.state2) + state.offset
        self._codes, self._scales = weight.data, scales.float().contiguous()
        self._values, self._bias = state.code.float().contiguous(), None if bias is None else bias.float().contiguous()
        self.nbytes = self._scales.nbytes
        """Beside the packed weights themselves."""
        function.argtypes = (*(c_void_p,) * 3, *(c_int64,) * 3, *(c_void_p,) * 2, *(c_int64,) * 2, c_void_p, c_int64)
        function.restype = None
        self._function = function
        self._fixed = (
            *(self._codes.data_ptr(), self._scales.data_ptr(), self._values.data_ptr()),
            *(int(dense.dtype == torch.bfloat16), *dense.shape, None if self._bias is None else self._bias.data_ptr()),
        )
        # One-hot rows give the weights themselves.
        columns = torch.linspace(0, dense.shape[1] - 1, PROBES).long()
        probe = torch.zeros(PROBES, dense.shape[1], dtype=dense.dtype)
        probe[torch.arange(PROBES), columns] = 1
        got = torch.empty(PROBES, dense.shape[0], dtype=dense.dtype)
        self(probe, got)
        expected = dense[:, columns].T if bias is None else (dense[:, columns].T.float() + bias.float()).to(dense.dtype)
        if not torch.equal(got, expected):
            raise LookupError("packed weights give other values")

    def __call__(self, x: Tensor, y: Tensor) -> None:
        """Write the product of x [T, in] into y [T, out], of the same type, a view of wider rows if need be."""
        self._function(*self._fixed, x.data_ptr(), x.stride(0), x.shape[0], y.data_ptr(), y.stride(0))


class PackedProducts:
    """The products of a group's members with weights that stay packed, side by side."""

    def __init__(
        self, products: Sequence[PackedProduct], widths: Sequence[int], dtype: torch.dtype, nbytes: int
    ) -> None:
        self.products, self._widths, self.nbytes = products, tuple(widths), nbytes
        self.most = ROWS[dtype]
        """Most input rows that they are taken for."""

    def pays(self, x: Tensor) -> bool:
        """Whether this is the fastest product for x [T, in], and may be used: it records no gradient."""
        return x.shape[0] <= self.most and not (torch.is_grad_enabled() and x.requires_grad)

    def __call__(self, x: Tensor) -> Tensor:
        """[T, in] -> [T, sum of outputs]."""
        x = x if x.stride(-1) == 1 else x.contiguous()
        y = x.new_empty(x.shape[0], sum(self._widths))
        for product, part in zip(self.products, y.split(self._widths, dim=-1), strict=True):
            product(x, part)
        return y


def make_packed_products(modules: Sequence[nn.Module], dense: Tensor, bias: Tensor | None) -> PackedProducts | None:
    """For NF4 linears whose values are ``dense`` [sum of outputs, in]; None where this machine has no such product."""
    if not all(is_quantized(m) for m in modules):
        return None
    widths = [int(m.out_features) for m in modules]  # type: ignore[arg-type]
    biases = [None] * len(modules) if bias is None else bias.split(widths)
    try:
        products = [PackedProduct(*parts) for parts in zip(modules, dense.split(widths), biases, strict=True)]
    except LookupError:
        return None
    packed: list[Any] = [m.weight for m in modules]
    return PackedProducts(
        products, widths, dense.dtype, sum(w.data.nbytes for w in packed) + sum(p.nbytes for p in products)
    )
