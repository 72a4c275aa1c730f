"""Attention in training: a variable-length kernel where one agrees with plain attention, and the memory that it keeps.

Kernels here are plain code with a kernel's contract, or a kernel's faults.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from loramux_server.core.jobs import TrainSpec
from loramux_server.core.settings import EngineSettings
from loramux_server.lora.routing import Routing
from loramux_server.lora.trainable import AdapterRows, TrainableBlock
from loramux_server.model import attention
from loramux_server.model.attention import PackedAttention, causal_mask, dense_attention, takes_groups
from loramux_server.model.resident import ResidentBase
from loramux_server.model.varlen import VarlenAttention, find_kernel
from loramux_server.training.backprop.layerwise import ActivationPolicy, LayerwisePass, layer_bytes
from loramux_server.training.setup import new_adapter
from tests.engine import Engine, rows
from tests.examples import few
from tests.rows import train_command

CPU = torch.device("cpu")
LENGTHS = (5, 1, 17, 9)


def plain(q: Tensor, k: Tensor, v: Tensor, starts: Tensor, longest: int, *, scale: float, window: int | None) -> Tensor:
    """The kernel's contract."""
    assert starts.dtype == torch.int32
    parts = []
    for begin, end in zip(starts.tolist(), starts.tolist()[1:], strict=False):
        assert end - begin <= longest
        mask = causal_mask(end - begin, 0, window, q.device)
        one = [x[begin:end].transpose(0, 1)[None] for x in (q, k, v)]
        parts.append(dense_attention(*one, scale=scale, softcap=None, mask=mask)[0].transpose(0, 1))
    return torch.cat(parts)


def forgets_the_window(*given, window, **options) -> Tensor:  # type: ignore[no-untyped-def]
    return plain(*given, window=None, **options)


def sees_all(q, k, v, starts, longest, **options) -> Tensor:  # type: ignore[no-untyped-def]
    """One sequence of all."""
    return plain(q, k, v, starts[[0, -1]], len(q), **options)


def without_gradients_of_keys(q, k, v, *rest, **options) -> Tensor:  # type: ignore[no-untyped-def]
    return plain(q, k.detach() + 0 * k, v, *rest, **options)


def refuses(*given, **options) -> Tensor:  # type: ignore[no-untyped-def]
    raise RuntimeError("FlashAttention only supports Ampere GPUs or newer")


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_a_kernel_is_taken_if_values_and_gradients_agree(kv_heads: int) -> None:
    assert find_kernel(4, kv_heads, 32, CPU, torch.bfloat16, plain) is plain
    for faulty in (forgets_the_window, sees_all, without_gradients_of_keys, refuses):
        assert find_kernel(4, kv_heads, 32, CPU, torch.bfloat16, faulty) is None


def test_torch_has_no_such_kernel_here() -> None:
    """On a host torch's own raises, and that is an answer too."""
    assert find_kernel(4, 2, 32, CPU, torch.bfloat16) is None


@pytest.mark.parametrize("window", [None, 4, 17, 100])
def test_it_is_the_attention_of_padded_sequences(window: int | None) -> None:
    draw = torch.Generator().manual_seed(0)
    q, k, v, pull = (torch.randn(sum(LENGTHS), heads, 16, generator=draw) for heads in (6, 2, 2, 6))
    found = []
    for made in (PackedAttention(LENGTHS, CPU), VarlenAttention(LENGTHS, CPU, plain)):
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        out = made.attend(0, *leaves, scale=0.25, window=window, softcap=None)
        found.append([out, *torch.autograd.grad(out, leaves, pull)])
    for a, b in zip(*found, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-5)


def test_expanded_keys_and_values_are_grouped_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU computes where no kernel takes groups."""
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, heads, 7, 16, generator=draw) for heads in (6, 2, 2))
    expected = dense_attention(q, k, v, scale=0.25, softcap=None, mask=None, causal=True)
    monkeypatch.setattr(attention, "takes_groups", lambda *_: False)
    got = dense_attention(q, k, v, scale=0.25, softcap=None, mask=None, causal=True)
    assert torch.allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_which_kernels_take_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    ampere, turing = torch.device("cuda", 0), torch.device("cuda", 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0) if device == ampere else (7, 5))
    assert takes_groups(ampere, torch.bfloat16, masked=False)
    assert not takes_groups(ampere, torch.bfloat16, masked=True)
    assert not takes_groups(ampere, torch.float32, masked=False)
    assert not takes_groups(turing, torch.float16, masked=False)
    assert takes_groups(torch.device("cpu"), torch.float32, masked=True)
    takes_groups.cache_clear()


def test_a_job_through_the_kernel_has_the_losses_of_one_without(tiny_base, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    found = {}
    for kernel in (None, plain):
        engine = Engine(tiny_base("llama"), tmp_path / f"state-{kernel is None}", dtype="float32")
        engine.base.__dict__["varlen_kernel"] = kernel
        spec = TrainSpec(rank=4, alpha=8, learning_rate=5e-3, max_steps=4, epochs=99, batch_size=4, seed=3)
        job = train_command("job", spec, rows(8), rows(2, seed=5), output=str(tmp_path / f"out-{kernel is None}"))
        found[kernel is None] = [e.metrics["loss"] for e in engine.train(job) if e.type == "step"]
        engine.close()
    assert found[True] == pytest.approx(found[False], rel=1e-4)


@pytest.mark.parametrize(
    ("arch", "dtype", "lengths"),
    few([("llama", "bfloat16", (64,) * 4), ("gemma2", "float32", (300,)), ("llama", "float32", (150, 9, 9, 9))], 2),
)
def test_the_estimate_of_activations_is_above_what_is_kept_and_near_it(  # type: ignore[no-untyped-def]
    tiny_base, tmp_path: Path, arch: str, dtype: str, lengths: tuple[int, ...]
) -> None:
    """gemma2 caps its scores, so matrices of them are kept; the third case is mostly padding."""
    folder = tiny_base(arch)
    settings = EngineSettings(
        str(folder),
        str(tmp_path),
        device="cpu",
        dtype=dtype,
        training_dtype=dtype,
        cpu_weights="packed",  # type: ignore[arg-type]
    )
    base = ResidentBase.load(settings, folder)
    tokens = sum(lengths)
    adapter = new_adapter(base, TrainSpec(rank=4))
    own = {t.untyped_storage().data_ptr() for t in (*base.model.parameters(), *base.model.buffers(), *adapter.flat())}
    kept: dict[int, Tensor] = {}

    def note(x: Tensor) -> Tensor:
        if x.untyped_storage().data_ptr() not in own:
            kept[x.untyped_storage().data_ptr()] = x
        return x

    routing = Routing((TrainableBlock([AdapterRows(adapter, tokens)]),))
    layers = LayerwisePass(base, lengths, routing, base.embed(torch.arange(tokens)).to(base.training_dtype))
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        layers._run(1, layers.input.detach().requires_grad_())
    measured = sum(x.untyped_storage().nbytes() for x in kept.values())
    assert measured < layer_bytes(base, lengths) < 2.5 * measured


def test_longer_rows_reach_the_limit_where_scores_are_kept(tiny_base, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """As many tokens in one row as in many, and only the one row is computed again."""
    folder = tiny_base("gemma2")
    base = ResidentBase.load(EngineSettings(str(folder), str(tmp_path), device="cpu", dtype="float32"), folder)
    short, long = (8,) * 64, (512,)
    policy = ActivationPolicy(base, 0, (layer_bytes(base, short) + layer_bytes(base, long)) // 2 * len(base.layers))
    assert policy.keeps(short)
    assert not policy.keeps(long)
