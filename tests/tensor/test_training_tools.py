"""Rows that call tools: masked and trained on as transformers' template and a PEFT loop have it, and asked again so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from loramux_server.core.jobs import TrainRow, TrainSpec
from loramux_server.text import TextTokenizer
from tests.datasets import load_dataset
from tests.engine import Engine, command, stack_of, version_of
from tests.oracle import Oracle
from tests.peft_loop import initial_adapter, peft_losses
from tests.rows import train_command
from tests.unit.text.templates import FAMILIES
from tests.unit.text.text_models import byte_level_folder

SPEC = TrainSpec(rank=4, alpha=8, learning_rate=2e-2, epochs=3, batch_size=2, seed=3, layers=(1, 2))
TOOLS = [
    {"type": "function", "function": {"name": "opens", "parameters": {"properties": {"shop": {"type": "string"}}}}}
]


def messages(number: int) -> list[dict[str, Any]]:
    """A question, the call of a tool, its result and the answer."""
    call = {"type": "function", "function": {"name": "opens", "arguments": {"shop": f"mill {number}"}}}
    return [
        {"role": "user", "content": f"When does mill {number} open?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "name": "opens", "content": '{"open": 9}'},
        {"role": "assistant", "content": f"Mill {number} opens at nine."},
    ]


@pytest.fixture
def tokenizer_folder(tmp_path: Path) -> Path:
    template, bos, eos = FAMILIES["qwen"]
    return byte_level_folder(tmp_path / "tokenizer", template, bos_token=bos, eos_token=eos, size=370)


def expected_row(tokenizer: Any, turns: list[dict[str, Any]]) -> TrainRow:
    """What transformers renders; the call and the answer are learned, each with the token that ends its turn."""

    def render(count: int, prompt: bool) -> list[int]:
        found: list[int] = tokenizer.apply_chat_template(
            turns[:count], tools=TOOLS, add_generation_prompt=prompt, return_dict=False
        )
        return found

    ids = render(len(turns), False)
    labels = [False] * len(ids)
    for index in (1, 3):
        start = len(render(index, True))
        end = ids.index(tokenizer.eos_token_id, start) + 1
        labels[start:end] = [True] * (end - start)
    return TrainRow(tuple(ids), tuple(labels))


@pytest.mark.slow
def test_rows_of_tools_equal_a_peft_loop(tiny_base, tmp_path: Path, tokenizer_folder: Path) -> None:  # type: ignore[no-untyped-def]
    plain = AutoTokenizer.from_pretrained(tokenizer_folder)
    expected = [expected_row(plain, messages(number)) for number in range(4)]
    lines = [json.dumps({"messages": messages(number), "tools": TOOLS}) for number in range(4)]
    data = load_dataset("\n".join(lines).encode(), TextTokenizer.load(tokenizer_folder), max_length=1024).rows
    for row, wanted in zip(data, expected, strict=True):
        size = len(row.input_ids)  # what follows the last answer's end is nobody's to learn
        assert (row.input_ids, row.labels) == (wanted.input_ids[:size], wanted.labels[:size])
        assert not any(wanted.labels[size:])
    base = tiny_base("llama", max_position_embeddings=1024)
    engine = Engine(base, tmp_path / "state")
    events = engine.train(train_command("tools", SPEC, data, output=str(tmp_path / "out")))
    losses = [e.metrics["loss"] for e in events if e.type == "step"]
    assert losses == pytest.approx(peft_losses(base, SPEC, expected, initial_adapter(engine.base, SPEC)), rel=1e-3)
    assert losses[-1] < losses[0] - 0.1
    prompt = plain.apply_chat_template(messages(0)[:1], tools=TOOLS, add_generation_prompt=True, return_dict=False)
    engine.run(command("asked", prompt, 8, stack_of((version_of(tmp_path / "out", SPEC.rank), 1.0))))
    assert engine.tokens("asked") == Oracle(base).greedy(prompt, 8, [(tmp_path / "out", 1.0)])
    engine.close()
