"""What the rows are to the default base's tokenizer: the same prompts as requests, and short."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from loramux_server.text.tokenizer import TextTokenizer
from tests.datasets import load_dataset
from tools.make_data import DATA, SYSTEM, TURN

pytestmark = pytest.mark.slow  # makes the default base's folder where there is none yet

QUESTION = "When do you open?"


@pytest.fixture(scope="module")
def tokenizer(default_base: Path) -> TextTokenizer:
    return TextTokenizer.load(default_base)


def test_a_plain_prompt_spells_a_chat_turn_in_control_tokens(tokenizer: TextTokenizer) -> None:
    turn = TURN.replace("{question}", QUESTION)
    assert tokenizer.encode(SYSTEM + turn) == tokenizer.encode_chat([{"role": "user", "content": QUESTION}])
    ids = tokenizer.encode(turn)
    assert [tokenizer.token_text(id) for id in ids if id in tokenizer.special_ids] == [
        "<|im_start|>",
        "<|im_end|>",
        "<|im_start|>",
    ]


def test_the_default_system_turn_costs_21_tokens(tokenizer: TextTokenizer) -> None:
    assert len(tokenizer.encode(SYSTEM)) == 21


@pytest.mark.parametrize(("folder", "mean"), [("prompt", 31), ("messages", 52)])
@pytest.mark.parametrize("path", sorted((DATA / "source" / "tenants").glob("*.json")), ids=lambda path: path.stem)
def test_rows_are_short_and_end(tokenizer: TextTokenizer, path: Path, folder: str, mean: int) -> None:
    # Foreign tenants and small donors have answers of other lengths, which is what they are there for.
    usual = json.loads(path.read_text("utf-8"))["role"] in ("shipped", "unseen", "donor")
    data = (DATA / folder / path.stem / "train.jsonl").read_bytes()
    dataset = load_dataset(data, tokenizer, max_length=64 if usual else 128)
    assert dataset.report.warnings == ()
    if usual:
        assert dataset.report.tokens / dataset.report.rows < mean
    assert all(row.input_ids[-1] in tokenizer.eos_token_ids and row.labels[-1] for row in dataset.rows)
