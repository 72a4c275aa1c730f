"""The compiled functions of a decode step, each against torch's operators."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import rms_norm, silu

from loramux_server.core.settings import EngineSettings
from loramux_server.cpu import decode
from loramux_server.cpu.decode import DecodeKernels
from loramux_server.cpu.native import build
from loramux_server.model.kv import KVPool, KVShape, PagedAttention, Span
from loramux_server.model.resident import ResidentBase

TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2e-2}

pytestmark = pytest.mark.skipif(build(decode.SOURCE) is None, reason="no C++ compiler here")


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def kernels(request: pytest.FixtureRequest) -> DecodeKernels:
    torch.manual_seed(0)
    return DecodeKernels(request.param)


def alike(got: Tensor, expected: Tensor) -> bool:
    difference = (got.double() - expected.double()).abs().max()
    return bool(difference <= TOLERANCE[got.dtype] * expected.double().abs().max())


@pytest.mark.parametrize("rows", [1, 7])
def test_add_norm(kernels: DecodeKernels, rows: int) -> None:
    x, delta, weight = (torch.randn(*shape).to(kernels.dtype) for shape in ((rows, 48), (rows, 48), (48,)))
    total = x + delta
    plain = kernels.add_norm(x, None, weight, 1e-5)
    assert alike(plain, rms_norm(x, (48,), weight, 1e-5))
    assert alike(kernels.add_norm(x, delta, weight, 1e-5), rms_norm(total, (48,), weight, 1e-5))
    assert torch.equal(x, total)


def test_gate_is_right_far_out_and_keeps_nan_to_itself(kernels: DecodeKernels) -> None:
    x = torch.linspace(-200, 200, 5 * 64).view(5, 64).to(kernels.dtype)
    x[3] = torch.nan
    got, expected = kernels.gate(x), silu(x[:, :32].float()) * x[:, 32:].float()
    keep = [0, 1, 2, 4]
    assert alike(got[keep], expected[keep])
    assert got[3].isnan().all()


@pytest.mark.parametrize("heads", [(2, 2), (4, 2), (6, 2), (8, 2)], ids=["own keys", "by 2", "by 3", "by 4"])
@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("normed", [False, True])
def test_attention_over_pages(kernels: DecodeKernels, heads: tuple[int, int], window: int | None, normed: bool) -> None:
    """Sequences of unlike lengths, at and across the borders of pages; one is broken."""
    size, contexts = 32, (1, 4, 5, 13)
    pool = KVPool(KVShape(2, heads[1], size, page_size=4), 12, torch.device("cpu"), kernels.dtype)
    pool.keys.normal_()
    pool.values.normal_()
    pages = ((5,), (2,), (7, 0), (1, 9, 3, 4))
    spans = [Span(n - 1, 1, p) for n, p in zip(contexts, pages, strict=True)]
    qkv = torch.randn(4, (heads[0] + 2 * heads[1]) * size).to(kernels.dtype)
    qkv[1] = torch.nan
    angles = torch.rand(4, size // 2) * 6
    cos, sin = (torch.cat([t, t], dim=1).to(kernels.dtype) for t in (angles.cos(), angles.sin()))
    norms = (torch.randn(size).to(kernels.dtype), torch.randn(size).to(kernels.dtype), 1e-6) if normed else None

    twin = KVPool(pool.shape, 12, torch.device("cpu"), kernels.dtype)
    twin.keys.copy_(pool.keys)
    twin.values.copy_(pool.values)
    q, k, v = qkv.clone().view(4, -1, size).split([heads[0], heads[1], heads[1]], dim=1)
    if norms is not None:
        q, k = rms_norm(q, (size,), norms[0], 1e-6), rms_norm(k, (size,), norms[1], 1e-6)

    def rotated(x: Tensor) -> Tensor:
        turned = torch.cat([-x[..., size // 2 :], x[..., : size // 2]], dim=-1)
        return x * cos[:, None] + turned * sin[:, None]

    expected = PagedAttention(twin, spans).attend(1, rotated(q), rotated(k), v, scale=0.2, window=window, softcap=None)
    got = kernels.step(PagedAttention(pool, spans), cos, sin).attend(1, qkv, norms, scale=0.2, window=window)

    keep = [0, 2, 3]
    assert alike(got.view(4, heads[0], size)[keep], expected[keep])
    assert got[1].isnan().all()
    assert torch.equal(pool.values.nan_to_num(), twin.values.nan_to_num())
    assert alike(pool.keys.nan_to_num(), twin.keys.nan_to_num())


@pytest.mark.slow
def test_functions_that_give_something_else_are_not_used(
    default_base: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    right = DecodeKernels.gate
    monkeypatch.setattr(DecodeKernels, "gate", lambda self, gate_up: right(self, gate_up) * 1.05)
    base = ResidentBase.load(EngineSettings(device="cpu", dtype="float32"), default_base)
    assert base.fused is not None
    assert base.fused.kernels is None
    assert "not used" in caplog.text
