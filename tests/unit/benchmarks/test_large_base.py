"""The table of a large base: by the server's planner, from shapes alone, and it adds up."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.large_base import plan
from benchmarks.random_base import SHAPES, write_16_bit, write_nf4
from loramux_server.model.base.fingerprint import stored_tensors
from loramux_server.model.base.load import load_base
from loramux_server.model.base.quantize import prepare_base
from tests.tiny import tokenizer


def test_a_base_of_70_billion_weights_is_served_and_trained_on_80_gb() -> None:
    found = plan("70b")
    parts = found.cuda + found.weights + found.scales + found.graphs + found.adapters + found.kv_cache + found.left
    assert parts == found.card
    assert found.weights == pytest.approx(39.5e9, rel=0.01)
    assert found.weights_16_bit == pytest.approx(141.1e9, rel=0.01)
    assert found.kv_tokens > 2 * 8192
    assert found.adapters_of_rank_16 >= 16
    assert found.job + found.kept_layer_inputs < found.left


def test_a_card_that_is_too_small_is_refused() -> None:
    with pytest.raises(Exception, match="no memory for a KV cache"):
        plan("70b", 40 * 10**9)


@pytest.fixture
def words(tmp_path: Path) -> Path:
    tokenizer().save_pretrained(tmp_path / "words")
    return tmp_path / "words"


def test_random_weights_are_a_model_in_16_bits_and_in_nf4(
    tmp_path: Path, words: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SHAPES["tiny"], "vocab_size", 384)
    size = write_16_bit("tiny", tmp_path / "dense", words)
    assert size == sum(tensor.nbytes for tensor in stored_tensors((tmp_path / "dense").glob("*.safetensors")).values())
    converted = prepare_base(str(tmp_path / "dense"), tmp_path)
    write_nf4("tiny", tmp_path / "nf4", words)
    names = [set(stored_tensors(folder.glob("*.safetensors"))) for folder in (converted, tmp_path / "nf4")]
    assert names[0] == names[1]
    model = load_base(prepare_base(str(tmp_path / "nf4"), tmp_path), torch.device("cpu"), torch.float32).model
    assert torch.isfinite(model(input_ids=torch.tensor([[5, 6, 7]])).logits).all()
