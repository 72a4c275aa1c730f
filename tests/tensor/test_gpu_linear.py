"""The linears of a GPU, on whatever device there is: they hold the values of the modules that they are made from."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from torch import Tensor, nn

from loramux_server.core.settings import EngineSettings
from loramux_server.model.base_linear import ModuleLinear, make_linear
from loramux_server.model.frozen_linears import dense_weight
from loramux_server.model.gpu_linear import DenseLinear, JoinedLinear
from loramux_server.model.resident import keeps_packed
from loramux_server.model.scaled_gradients import ScaledGradients
from tests.engine import DEVICE

CUDA = torch.device("cuda")
"""Only a name: what is chosen for a GPU runs anywhere."""
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}


def quantized(in_features: int, *widths: int, biases: tuple[bool, ...] = (), block: int = 64) -> list[nn.Module]:
    torch.manual_seed(0)
    made: list[nn.Module] = []
    for width, bias in zip(widths, biases or (False,) * len(widths), strict=True):
        module = Linear4bit(in_features, width, bias=bias, quant_type="nf4", compress_statistics=True)
        module.weight.blocksize = block
        module.load_state_dict(nn.Linear(in_features, width, bias=bias).state_dict())
        made.append(module.to(DEVICE))
    return made


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("packed", [True, False], ids=["packed", "unpacked"])
@pytest.mark.parametrize("biases", [(False, False, False), (True, False, True)], ids=["plain", "biases"])
def test_products_and_gradients_are_those_of_the_modules(
    packed: bool, dtype: torch.dtype, biases: tuple[bool, ...]
) -> None:
    modules: Any = quantized(128, 40, 24, 64, biases=biases)
    for module in modules:
        module.weight.quant_state.dtype = dtype
    dense = torch.cat([dense_weight(m).to(dtype) for m in modules])
    offset = torch.cat([torch.zeros(m.out_features, device=DEVICE) if m.bias is None else m.bias.data for m in modules])
    product = make_linear(modules, dtype, CUDA, packed)
    inner = product.linear if isinstance(product, ScaledGradients) else product
    assert isinstance(inner, JoinedLinear if packed else DenseLinear)
    assert isinstance(product, ScaledGradients) == (dtype == torch.float16)
    assert product.out_features == (40, 24, 64)
    bound = {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype]}
    for rows in (1, 5, 70):
        x = torch.randn(rows, 128, device=DEVICE, requires_grad=True)  # float32 activations, as in training
        y = product(x)
        expected = x.detach().to(dtype).float() @ dense.float().T + offset.to(dtype).float()
        assert y.dtype == torch.float32
        torch.testing.assert_close(y, expected, **bound)
        gradient = torch.randn_like(y)
        y.backward(gradient)
        assert x.grad is not None
        torch.testing.assert_close(x.grad, gradient @ dense.float(), **bound)


def test_packed_values_are_joined_to_the_bit_and_held_once() -> None:
    """Scales that are worked out beforehand are those that bitsandbytes works out at every call."""
    modules: Any = quantized(192, 64, 37)
    values = torch.cat([dense_weight(m) for m in modules])
    product = JoinedLinear(modules, torch.float32)
    assert torch.equal(product._weight.dense(), values.float())
    storage = product._weight._codes.untyped_storage().data_ptr()
    assert all(m.weight.untyped_storage().data_ptr() == storage for m in modules)
    assert product.nbytes == 101 * 192 // 2 + 4 * 101 * 192 // 64
    assert torch.equal(torch.cat([dense_weight(m) for m in modules]), values)


def test_unpacked_values_are_held_without_the_packed_ones() -> None:
    modules: Any = quantized(128, 40, 24)
    values = torch.cat([dense_weight(m).to(torch.bfloat16) for m in modules])
    product = DenseLinear(modules, torch.bfloat16)
    assert torch.equal(product._weight, values)
    assert product.nbytes == 2 * values.numel()
    assert sum(m.weight.nbytes for m in modules) == 0


def other_block() -> list[nn.Module]:
    return [*quantized(128, 40), *quantized(128, 24, block=128)]


def one_dense() -> list[nn.Module]:
    return [*quantized(128, 40), nn.Linear(128, 24, bias=False, device=DEVICE)]


def halves_of_blocks() -> list[nn.Module]:
    return quantized(96, 41, 24)


@pytest.mark.parametrize("make", [other_block, one_dense, halves_of_blocks])
def test_what_cannot_be_joined_stays_as_it_is(make: Any) -> None:
    modules = make()
    expected: Tensor = torch.cat([dense_weight(m).float() for m in modules])
    product = make_linear(modules, torch.float32, CUDA, packed=True)
    assert isinstance(product, ModuleLinear)
    x = torch.randn(3, modules[0].in_features, device=DEVICE)  # type: ignore[arg-type]
    torch.testing.assert_close(product(x), x @ expected.T, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("choice", "unpacked", "packed"),
    [("packed", 1, True), ("unpacked", 99, False), ("auto", 35, False), ("auto", 36, True)],
)
def test_weights_are_unpacked_on_a_gpu_where_they_take_a_third_of_what_is_free(
    choice: Any, unpacked: int, packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (100, 200))
    assert keeps_packed(EngineSettings(gpu_weights=choice, cpu_weights="packed"), CUDA, unpacked) is packed
