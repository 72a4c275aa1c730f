"""The log-probabilities of loss tokens: the model's own logits, in bounded memory, with exact gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from loramux_server.core.generators import run_to_end
from loramux_server.core.jobs import TrainRow
from loramux_server.core.settings import EngineSettings
from loramux_server.lora.bank import AdapterBank
from loramux_server.model.attention import PackedAttention
from loramux_server.model.resident import ResidentBase
from loramux_server.training.backprop import head
from loramux_server.training.backprop.frozen_model import FrozenModel
from loramux_server.training.backprop.head import token_logprobs
from loramux_server.training.backprop.layerwise import ActivationPolicy, LayerwisePass
from loramux_server.training.backprop.micro_batch import JobRows, MicroBatch
from tests.engine import prompts
from tests.peft_loop import SMALL, initial_adapter
from tests.tiny import ARCHITECTURES


def load(folder: Path, tmp_path: Path) -> ResidentBase:
    return ResidentBase.load(EngineSettings(str(folder), str(tmp_path), device="cpu", dtype="float32"), folder)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_body_and_head_are_the_model(tiny_base, tmp_path: Path, arch: str) -> None:  # type: ignore[no-untyped-def]
    """Also where logits are capped or scaled, and for mixtures of experts."""
    base = load(tiny_base(arch), tmp_path)
    ids = torch.tensor(prompts(1, seed=2, lengths=(20, 21))[0])
    positions = torch.arange(len(ids))
    with torch.no_grad():
        base.fused = None
        expected = base.forward(positions, PackedAttention([len(ids)], base.device), None, positions, ids=ids)
        layers = LayerwisePass(base, [len(ids)], None, base.embed(ids))
        hidden = layers.final_hidden(run_to_end(layers.forward(layers.input, 0, len(base.layers))))
        assert torch.allclose(base.logits(hidden), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_chunks_give_the_loss_and_the_gradient_of_the_whole(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(head, "CHUNK", chunk)
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(40, 16, generator=draw, dtype=torch.float64).requires_grad_()
    weight = torch.randn(300, 16, generator=draw, dtype=torch.float64)
    targets = torch.randint(300, (40,), generator=draw)
    weights = torch.randn(40, generator=draw, dtype=torch.float64)  # as DPO's rows have them, not all alike

    def model(x: torch.Tensor) -> torch.Tensor:
        return 5 * torch.tanh(x @ weight.T / 5)

    found = run_to_end(token_logprobs(hidden.detach(), targets, model, gradients=True))
    assert found.gradients is not None
    got = weights[:, None] * found.gradients
    logits = model(hidden)
    expected = logits.log_softmax(-1).gather(-1, targets[:, None])[:, 0]
    (grad,) = torch.autograd.grad((expected * weights).sum(), hidden)
    assert torch.allclose(found.logprobs, expected, rtol=1e-12)
    assert torch.allclose(got, grad, rtol=1e-10, atol=1e-12)
    assert torch.equal(found.best, logits.argmax(-1) == targets)


class Widest(TorchDispatchMode):
    """Notes the size of the largest tensor that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
        return out


def test_logits_of_a_micro_batch_are_never_in_memory_at_once(tiny_base, tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """In forward and backward nothing is larger than a chunk of logits; all of them would be three times that."""
    monkeypatch.setattr(head, "CHUNK", 99)
    base = load(tiny_base("llama", vocab_size=16_384), tmp_path)
    adapter = initial_adapter(base, SMALL)
    bank = AdapterBank(base.groups, 0, base.device, base.dtype)
    frozen = FrozenModel(base, bank, [()], ActivationPolicy(base, 0), 0)
    row = TrainRow(tuple(range(3, 103)), (True,) * 100)
    with Widest() as widest:
        work = MicroBatch(base, [JobRows(frozen, [row] * 3, [0] * 3, adapter)])
        (found,) = run_to_end(work.forward(gradients=True))
        found.logprobs.sum().backward()
        run_to_end(work.backward())
    assert found.tokens == [99] * 3
    assert widest.numel <= 99 * 16_384
    assert all(b.grad is not None and b.grad.abs().sum() > 0 for _, b in adapter.parameters.values())
