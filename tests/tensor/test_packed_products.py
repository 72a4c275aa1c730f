"""Products with NF4 weights that stay packed give the values of the unpacked ones, row by row the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from torch import Tensor, nn

from loramux_server.cpu import nf4
from loramux_server.cpu.native import build
from loramux_server.model import base_linear as linear_module
from loramux_server.model.base_linear import PackedLinear, UnpackedLinear
from loramux_server.model.frozen_linears import dense_weight

pytestmark = pytest.mark.skipif(
    not hasattr(build(nf4.SOURCE), "nf4_float32"), reason="needs a C++ compiler and a processor with AVX-512"
)


@pytest.fixture(autouse=True, params=["vectors", "tiles"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways through the products, whatever this processor would take."""
    library: Any = build(nf4.SOURCE)
    if request.param == "vectors":
        monkeypatch.setattr(nf4, "_use_tiles", lambda library: bool(library.nf4_use_tiles(0)))
    elif not library.nf4_use_tiles(1):
        pytest.skip("needs a processor with AMX")
    return str(request.param)


def quantized(in_features: int, *widths: int, bias: bool = False) -> list[nn.Module]:
    torch.manual_seed(0)
    made = []
    for width in widths:
        module = Linear4bit(in_features, width, bias=bias, quant_type="nf4", compress_statistics=True)
        module.load_state_dict(nn.Linear(in_features, width, bias=bias).state_dict())
        module.to("cpu")
        made.append(module)
    return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("form", [PackedLinear, UnpackedLinear])
@pytest.mark.parametrize("bias", [False, True])
def test_the_weights_to_the_bit(form: type[PackedLinear | UnpackedLinear], dtype: torch.dtype, bias: bool) -> None:
    modules = quantized(128, 40, 33, bias=bias)
    product = form(modules, dtype)
    few = product._few
    assert few is not None
    dense = torch.cat([dense_weight(m).to(dtype) for m in modules])
    biases: list[Any] = [m.bias for m in modules]
    offset = torch.cat([b.data for b in biases]).to(dtype).float() if bias else torch.zeros(73)
    assert torch.equal(few(torch.eye(128, dtype=dtype)), (dense.T.float() + offset).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rows", [1, 2, 3, 7, 13, 16, 17, 40, 65])
def test_rows_do_not_depend_on_each_other(rows: int, dtype: torch.dtype) -> None:
    product = PackedLinear(quantized(192, 64, 37), dtype)
    assert product._few is not None
    x = torch.randn(rows, 192).to(dtype)
    x[0] = torch.nan if rows > 1 else x[0]
    alone: Tensor = torch.cat([product._few(x[i : i + 1]) for i in range(rows)])
    together = product._few(x)
    assert torch.equal(alone.nan_to_num(7), together.nan_to_num(7))
    dense = torch.cat([w.dense() for w in product._weights])
    expected = x[1:].double() @ dense.double().T
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    assert torch.allclose(together[1:].double(), expected, rtol=tolerance, atol=tolerance)


def test_where_there_is_no_such_product_all_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    modules = quantized(128, 40)
    x = torch.randn(3, 128)
    expected = UnpackedLinear(modules, torch.float32)(x)
    monkeypatch.setattr(nf4, "build", lambda source: None)
    for form in (PackedLinear, UnpackedLinear):
        assert torch.allclose(form(modules, torch.float32)(x), expected, atol=1e-5)


@pytest.mark.parametrize("reordered", [True, False])
@pytest.mark.parametrize("form", [PackedLinear, UnpackedLinear])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gradients_are_those_of_the_plain_weight(
    form: type[PackedLinear | UnpackedLinear], dtype: torch.dtype, reordered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not reordered:
        monkeypatch.setattr(linear_module, "prepack", lambda weight: None)
    modules = quantized(128, 40, 24, bias=True)
    product = form(modules, dtype)
    dense = torch.cat([dense_weight(m).to(dtype) for m in modules]).float()
    for rows in (2, 70):
        x = torch.randn(rows, 128, requires_grad=True)  # float32 activations, as in training
        slopes = torch.randn(rows, 64)
        product(x).backward(slopes)
        assert x.grad is not None
        torch.testing.assert_close(
            x.grad, slopes @ dense, **({"rtol": 2e-2, "atol": 2e-2} if dtype == torch.bfloat16 else {})
        )


def test_modules_whose_values_differ_are_not_taken() -> None:
    """A check against the values that everything else uses stands before the first product."""
    modules = quantized(128, 40)
    dense = dense_weight(modules[0]).float()
    assert nf4.make_packed_product(modules, dense, None) is not None
    assert nf4.make_packed_product(modules, dense * 1.01, None) is None
