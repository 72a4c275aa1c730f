"""The real default base: it loads, it talks, and its tokens are cut as in its training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from loramux_server.model.base.load import linear_modules, load_base
from loramux_server.model.base.quantize import prepare_base
from loramux_server.model.base.source import DEFAULT_MODEL, read_marker
from tests.oracle import Oracle


@pytest.mark.slow
def test_it_answers(default_base: Path) -> None:
    base = load_base(default_base, torch.device("cpu"), torch.float32)
    assert base.name == DEFAULT_MODEL
    assert len(linear_modules(base.model)) == 30 * 7
    tokenizer = AutoTokenizer.from_pretrained(default_base)
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}], add_generation_prompt=True
    )["input_ids"]
    answer = Oracle(default_base).greedy(ids, 8, eos=base.model.generation_config.eos_token_id)
    assert "Paris" in tokenizer.decode(answer)
    with torch.no_grad():
        first = base.model(input_ids=torch.tensor([ids])).logits[0, -1]
    assert int(first.argmax()) == answer[0]


def test_tokens(default_base: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(default_base)
    assert tokenizer("in 1987,  42").tokens() == ["in", "Ġ", "1", "9", "8", "7", ",", "ĠĠ", "4", "2"]
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer("<|im_start|>").input_ids == [1], "special tokens are known, and none is put in front"
    assert tokenizer.model_max_length == 8192


@pytest.mark.slow
def test_a_new_copy_is_the_base_that_adapters_were_trained_on(default_base: Path, tmp_path: Path) -> None:
    """The shipped adapters name its fingerprint; another one would refuse them."""
    card = (Path(__file__).parents[2] / "adapters/json/README.md").read_text()
    made = read_marker(prepare_base(None, tmp_path))
    assert f"fingerprint `{made['fingerprint']}`" in card
    assert made["fingerprint"] == read_marker(default_base)["fingerprint"]
