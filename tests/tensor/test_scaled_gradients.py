"""Gradients through float16 products: small ones survive, and those of float32 are what comes out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from loramux_server.core.jobs import TrainSpec
from loramux_server.model.scaled_gradients import ScaledGradients
from tests.engine import Engine, rows
from tests.rows import train_command


class Half:
    """A product in float16 between float32, as those of the base are."""

    out_features, nbytes = (48,), 0

    def __init__(self) -> None:
        self.weight = torch.randn(48, 64, generator=torch.Generator().manual_seed(0)).half()

    def __call__(self, x: Tensor) -> Tensor:
        return (x.half() @ self.weight.T).to(x.dtype)


@pytest.mark.parametrize("size", [1e-30, 1e-9, 1e-7, 1.0, 1e4, 1e9])
def test_gradients_of_any_size_are_those_of_float32(size: float) -> None:
    draw = torch.Generator().manual_seed(1)
    x, grad = torch.randn(32, 64, generator=draw), size * torch.randn(32, 48, generator=draw)
    linear = Half()
    leaf = x.clone().requires_grad_()
    ScaledGradients(linear)(leaf).backward(grad)
    assert leaf.grad is not None
    expected = grad @ linear.weight.float()
    assert torch.allclose(leaf.grad, expected, rtol=1e-2, atol=1e-2 * size)
    plain = x.clone().requires_grad_()
    linear(plain).backward(grad)
    assert plain.grad is not None
    if size < 1e-8:
        assert not plain.grad.any()  # what the scale is for
    if size > 1e8:
        assert not torch.isfinite(plain.grad).all()


def test_a_gradient_of_zeros_and_the_forward_are_untouched() -> None:
    linear = Half()
    x = torch.randn(4, 64).requires_grad_()
    out = ScaledGradients(linear)(x)
    assert torch.equal(out, linear(x))
    out.backward(torch.zeros_like(out))
    assert x.grad is not None
    assert not x.grad.any()


def test_a_job_on_a_float16_base_follows_one_in_float32(tiny_base, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    spec = TrainSpec(rank=4, alpha=8, learning_rate=5e-3, max_steps=8, epochs=99, batch_size=8, seed=3)
    found = {}
    for dtype in ("float16", "float32"):
        engine = Engine(tiny_base("llama"), tmp_path / f"state-{dtype}", dtype=dtype)
        job = train_command("job", spec, rows(16), output=str(tmp_path / dtype))
        found[dtype] = [e.metrics["loss"] for e in engine.train(job) if e.type == "step"]
        engine.close()
    assert found["float16"] == pytest.approx(found["float32"], rel=5e-3)
    assert found["float16"][-1] < found["float16"][0]
