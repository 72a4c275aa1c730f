"""The fused forward is taken where it gives the model's own logits, and nowhere else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from loramux_server.core.settings import EngineSettings
from loramux_server.model import fused_forward
from loramux_server.model.attention import PackedAttention
from loramux_server.model.resident import ResidentBase
from tests.tiny import ARCHITECTURES

FUSED = {"llama", "qwen2", "qwen3", "mistral"}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_which_bases_have_a_fused_forward(arch: str, dtype: str, tiny_base) -> None:  # type: ignore[no-untyped-def]
    base = ResidentBase.load(EngineSettings(device="cpu", dtype=dtype), tiny_base(arch))  # type: ignore[arg-type]
    assert (base.fused is not None) == (arch in FUSED)


@pytest.mark.slow
def test_the_default_base_has_a_fused_forward(default_base: Path) -> None:
    base = ResidentBase.load(EngineSettings(device="cpu", dtype="bfloat16"), default_base)
    assert base.fused is not None


def test_a_forgotten_window_shows(tiny_base, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    """A mistake in the fused arithmetic is found at start, and transformers' forward is taken."""
    record = fused_forward._Recorder.attend

    def without_window(self, layer, q, k, v, *, scale, window, softcap):  # type: ignore[no-untyped-def]
        out = record(self, layer, q, k, v, scale=scale, window=window, softcap=softcap)
        self.seen[layer] = scale * 1.05, None
        return out

    monkeypatch.setattr(fused_forward._Recorder, "attend", without_window)
    base = ResidentBase.load(EngineSettings(device="cpu", dtype="float32"), tiny_base("mistral"))
    assert base.fused is None
    positions = torch.arange(5)
    attention = PackedAttention([5], torch.device("cpu"))
    with torch.no_grad():
        assert base.forward(positions, attention, None, positions, ids=positions).isfinite().all()
