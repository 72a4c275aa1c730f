"""The Triton kernels of a layer in Triton's interpreter, each against what transformers computes in its place."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import silu
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb

from loramux_server.core.settings import EngineSettings
from loramux_server.model import kv
from loramux_server.model.fused import choice, operators
from loramux_server.model.fused.layer_kernels import GpuKernels
from loramux_server.model.kv import KVPool, KVShape, PagedAttention, Span
from loramux_server.model.resident import ResidentBase
from tests.engine import Engine, command, prompts
from tests.examples import few
from tests.tensor.graph_checks import compute_both_ways
from tests.tensor.interpreted import interpreted
from tests.tensor.tape import TapeCapture
from tests.tensor.test_graphs import add_graphs, one_query_each

pytest.importorskip("triton")

CPU = torch.device("cpu")
TYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["f32", "bf16", "f16"])
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1.6e-2, torch.float16: 2e-3}


@pytest.fixture(scope="module", autouse=True)
def in_numpy() -> Iterator[None]:
    with interpreted("loramux_server.model.fused.kernels") as kernels, pytest.MonkeyPatch.context() as patch:
        patch.setattr(operators, "_kernels", lambda: kernels)
        yield


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def alike(got: Tensor, expected: Tensor) -> bool:
    difference = (got.double() - expected.double()).abs().max()
    return bool(difference <= TOLERANCE[got.dtype] * expected.double().abs().max())


@TYPES
@pytest.mark.parametrize("width", [64, 576, 100])
@pytest.mark.parametrize("offset", [False, True], ids=["llama", "gemma"])
def test_add_norm(dtype: torch.dtype, width: int, offset: bool) -> None:
    """Rows that are views of wider ones; Gemma's norm has its weight as a distance from one."""
    x, delta = (torch.randn(5, width + 8).to(dtype)[:, :width] for _ in range(2))
    norm = Gemma2RMSNorm(width, eps=1e-6) if offset else LlamaRMSNorm(width, eps=1e-6).to(dtype)
    with torch.inference_mode():
        norm.weight.copy_(torch.randn(width))
        weight = 1 + norm.weight if offset else norm.weight
        total = x + delta
        assert alike(operators.add_norm(x, None, weight, 1e-6), norm(x))
        assert alike(operators.add_norm(x, delta, weight, 1e-6), norm(total))
        # The interpreter cuts bfloat16 off where a GPU rounds.
        assert torch.equal(x, total) or (dtype == torch.bfloat16 and alike(x, total))


@TYPES
def test_gate_is_right_far_out_and_keeps_nan_to_itself(dtype: torch.dtype) -> None:
    x = torch.linspace(-200, 200, 5 * 2080).view(5, 2080).to(dtype)
    x[3] = torch.nan
    got, expected = operators.gate(x), silu(x[:, :1040].float()) * x[:, 1040:].float()
    keep = [0, 1, 2, 4]
    assert alike(got[keep], expected[keep].to(dtype))
    assert got[3].isnan().all()


@TYPES
@pytest.mark.parametrize(("size", "rotated"), [(32, 32), (96, 96), (80, 32)], ids=["whole", "no power", "partial"])
@pytest.mark.parametrize("normed", [False, True], ids=["plain", "qk-norm"])
def test_rotate_write(dtype: torch.dtype, size: int, rotated: int, normed: bool) -> None:
    """Queries as transformers turns them, keys and values where they belong and nowhere else; a broken row alone."""
    heads, kv_heads, rows = 4, 2, 4
    pool = KVPool(KVShape(2, kv_heads, size, page_size=4), 5, CPU, dtype)
    pool.keys.normal_()
    pool.values.normal_()
    before = pool.keys.clone(), pool.values.clone()
    slots = torch.tensor([17, 3, 8, 20])
    qkv = torch.randn(rows, (heads + 2 * kv_heads) * size).to(dtype)
    qkv[1] = torch.nan
    angles = torch.rand(rows, rotated // 2) * 6
    cos, sin = (torch.cat([t, t], dim=1).to(dtype) for t in (angles.cos(), angles.sin()))
    q, k, v = qkv.float().view(rows, -1, size).split([heads, kv_heads, kv_heads], dim=1)
    norms: list[Tensor | None] = [None, None]
    if normed:
        modules = [LlamaRMSNorm(size, eps=1e-5) for _ in range(2)]
        with torch.no_grad():
            for module in modules:
                module.weight.copy_(torch.randn(size).to(dtype))
            q, k = modules[0](q), modules[1](k)
        norms = [module.weight.detach().to(dtype) for module in modules]
    turned = apply_rotary_pos_emb(q[..., :rotated], k[..., :rotated], cos.float(), sin.float(), unsqueeze_dim=1)
    q, k = (torch.cat([part, whole[..., rotated:]], -1) for part, whole in zip(turned, (q, k), strict=True))
    with torch.inference_mode():
        got = operators.rotate_write(qkv, cos, sin, *norms, 1e-5, slots, pool.keys[1], pool.values[1])
    keep = [0, 2, 3]
    assert got.shape == (rows, heads, size)
    assert alike(got[keep], q[keep].to(dtype))
    assert got[1].isnan().all()
    for pages, old, new in ((pool.keys, before[0], k), (pool.values, before[1], v)):
        written = pages[1].flatten(0, 1)
        assert alike(written[slots[keep]], new[keep].to(dtype))
        assert written[slots[1]].isnan().all()
        others = torch.ones(len(written), dtype=torch.bool)
        others[slots] = False
        assert torch.equal(written[others], old[1].flatten(0, 1)[others])
        assert torch.equal(pages[0], old[0])


def test_fake_tensors_have_the_operators_shapes() -> None:
    qkv, cos = torch.randn(3, 8 * 16), torch.randn(3, 16)
    slots, pages = torch.arange(3), (torch.zeros(2, 4, 2, 16), torch.zeros(2, 4, 2, 16))
    for operator, given in (
        (operators.add_norm, (torch.randn(3, 24), torch.randn(3, 24), torch.randn(24), 1e-5)),
        (operators.gate, (torch.randn(3, 24),)),
        (operators.rotate_write, (qkv, cos, cos, None, None, 0.0, slots, *pages)),
    ):
        torch.library.opcheck(operator, given, test_utils=("test_schema", "test_faketensor"))


@pytest.fixture
def kernels_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels fit, as they do on a GPU."""
    monkeypatch.setattr(choice, "_fitting", lambda decoder: GpuKernels(decoder.norm.weight.dtype))


@pytest.mark.usefixtures("kernels_everywhere")
@pytest.mark.parametrize("arch", few(["qwen3", "llama", "qwen2", "mistral"]))
def test_a_base_takes_them_and_gives_the_same_logits(arch: str, tiny_base, tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """Prompts and answers; the engine's own trial at the start let the kernels in."""
    engine = Engine(tiny_base(arch), tmp_path / "kernels")
    fused = engine.base.fused
    assert fused is not None
    assert isinstance(fused.kernels, GpuKernels)
    texts = prompts(2, lengths=(3, 9), seed=3)
    engine.run(*(command(f"k{i}", p, 4) for i, p in enumerate(texts)))
    fused.kernels = None
    engine.scheduler.pages.clear_cached()
    engine.run(*(command(f"t{i}", p, 4) for i, p in enumerate(texts)))
    for i in range(2):
        for got, expected in zip(engine.logits[f"k{i}"], engine.logits[f"t{i}"], strict=True):
            assert torch.allclose(got, expected, atol=1e-4)
    engine.close()


@pytest.mark.usefixtures("kernels_everywhere")
def test_a_graph_replays_them(tiny_base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    """As operators they are captured with all else, and padding writes to the scratch page alone."""
    monkeypatch.setattr(kv, "paged_kernel", one_query_each)
    compute_both_ways(monkeypatch, lambda got, expected: float((got - expected).abs().max()) < 1e-4)
    engine, capture = Engine(tiny_base("qwen3"), tmp_path / "graphs"), TapeCapture()
    add_graphs(engine, capture, rows=4)
    engine.run(*(command(f"g{i}", p, 3) for i, p in enumerate(prompts(3, lengths=(3, 6), seed=3))))
    assert capture.steps == engine.kinds.count("decode") > 1
    engine.close()


def wrong(qkv: Tensor) -> Tensor:
    return operators.gate(qkv) * 1.05


def fails(qkv: Tensor) -> Tensor:
    raise RuntimeError("ptxas is missing")


@pytest.mark.usefixtures("kernels_everywhere")
@pytest.mark.parametrize(("gate", "why"), [(wrong, "other logits"), (fails, "ptxas is missing")])
def test_kernels_that_fail_their_trial_are_not_used(
    gate: Callable[[Tensor], Tensor],
    why: str,
    tiny_base: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(GpuKernels, "gate", lambda self, gate_up: gate(gate_up))
    base = ResidentBase.load(EngineSettings(device="cpu", dtype="float32"), tiny_base("llama"))
    assert base.fused is not None
    assert base.fused.kernels is None
    (line,) = [r.message for r in caplog.records if "not used" in r.message]
    assert why in line


def test_what_attends_without_pages_goes_its_own_way() -> None:
    """Prompts of a pool that is gathered never read their keys back, so a step of them is torch's."""
    pool = KVPool(KVShape(1, 1, 32), 2, CPU, torch.float32)
    prompt, token = PagedAttention(pool, [Span(0, 5, (0,))]), PagedAttention(pool, [Span(5, 1, (0,))])
    cos = torch.ones(5, 32)
    kernels = GpuKernels(torch.float32)
    assert choice.start_step(kernels, prompt, cos, cos) is None
    assert choice.start_step(kernels, token, cos[:1], cos[:1]) is not None
    assert choice.start_step(None, token, cos[:1], cos[:1]) is None


COMPILE = """
import subprocess, sys, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from loramux_server.model.fused import kernels

heads = ((64, 32, 32, 0), (128, 64, 64, 0), (96, 48, 64, 0), (256, 128, 128, 0), (80, 16, 16, 64))
norms = [dict(ADD=add, BLOCK=block) for add, block in ((True, 1024), (True, 8192), (False, 4096))]
turns = [dict(NORMED=n, SIZE=s, HALF=h, BLOCK=b, REST=r) for n in (True, False) for s, h, b, r in heads]
arch, dtypes = int(sys.argv[1]), sys.argv[2:]
numbers = dict.fromkeys(("x_stride", "delta_stride", "width", "stride", "heads", "kv_heads"), "i32")
numbers |= {"eps": "fp32", "slots": "*i64"}
count = 0
for dtype in dtypes:
    for name, choices in (("add_norm", norms), ("gate", [dict(BLOCK=1024)]), ("rotate_write", turns)):
        kernel = getattr(kernels, name)
        for constants in choices:
            types = {n: "constexpr" if n in constants else numbers.get(n, "*" + dtype) for n in kernel.arg_names}
            source = ASTSource(kernel, types, {(kernel.arg_names.index(n),): v for n, v in constants.items()})
            warps = {"add_norm": min(16, constants["BLOCK"] // 256), "gate": 4}.get(name, 1)
            made = triton.compile(source, target=GPUTarget("cuda", arch, 32), options={"num_warps": warps})
            with open("kernel.cubin", "wb") as file:
                file.write(made.asm["cubin"])
            line = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", "kernel.cubin"]
            usage = subprocess.run(line, capture_output=True, text=True, check=True).stdout
            assert "LOCAL:0" in usage and "STACK:0" in usage, (name, constants, dtype, usage)
            count += 1
print(count)
"""


@pytest.mark.parametrize(
    ("arch", "dtypes"),
    [
        pytest.param(80, ["bf16", "fp16", "fp32"], marks=pytest.mark.slow),
        pytest.param(89, ["bf16", "fp16", "fp32"], marks=pytest.mark.slow),
        pytest.param(90, ["bf16", "fp16", "fp32"], marks=pytest.mark.slow),
    ],
)
def test_they_compile_for_a_gpu_without_spills(arch: int, dtypes: list[str], tmp_path: Path) -> None:
    """For the shapes of bases from 135M to 8B and beyond, in a process without the interpreter."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", COMPILE, str(arch), *dtypes],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "TRITON_CACHE_DIR": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout) == 14 * len(dtypes)
