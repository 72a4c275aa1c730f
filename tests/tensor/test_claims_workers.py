"""What the claims are measured with: the plain loop trains as row by row, and added weights score as a stack does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.claims.parameters import count
from benchmarks.claims.workers import logprobs, loop
from benchmarks.material import linears
from loramux_server.core.jobs import TrainSpec
from loramux_server.core.settings import EngineSettings
from loramux_server.model.resident import ResidentBase
from tests.engine import prompts, rows
from tests.oracle import Oracle, load_plain
from tests.peft_loop import PeftLoop, initial_adapter
from tests.unit.docs.markdown import ROOT

SPEC = TrainSpec(rank=4, alpha=8, learning_rate=5e-3, epochs=2, batch_size=4, seed=3)


@pytest.fixture(scope="module")
def base(tiny_base: Callable[[str], Path]) -> Path:
    return tiny_base("llama")


def test_the_loop_over_padded_batches_trains_as_row_by_row(base: Path) -> None:
    data = rows(8)
    assert len({len(row.input_ids) for row in data}) > 1  # so batches are padded
    resident = ResidentBase.load(EngineSettings(device="cpu", dtype="float32"), base)
    expected = PeftLoop(base, SPEC, initial_adapter(resident, SPEC), [()])
    model = loop.trainable(loop.load_model(base, torch.float32), "lora", SPEC)
    with torch.no_grad():
        for name, module in model.named_modules():
            if (pair := expected.modules.get(name.removeprefix("base_model.model."))) is not None:
                module.lora_A["default"].weight.copy_(pair[0])
                module.lora_B["default"].weight.copy_(pair[1])
    assert loop.train(model, data, SPEC, torch.float32) == pytest.approx(expected.run(data, [0] * 8), rel=1e-3)


def test_answers_in_a_padded_batch_are_those_of_each_prompt_alone(base: Path) -> None:
    asked = [list(prompt) for prompt in prompts(3)]
    end = 2
    found = loop.answers(loop.load_model(base, torch.float32), asked, 6, end)
    oracle = Oracle(base)
    alone = [oracle.greedy(prompt, 6, eos=end) for prompt in asked]
    assert found == [tokens[: tokens.index(end)] if end in tokens else tokens for tokens in alone]


def test_added_weights_score_as_the_stack(base: Path, tmp_path: Path, make_adapter: Callable[..., Path]) -> None:
    stack = [(make_adapter(tmp_path / f"a{i}", base, rank=3, seed=i, scale=0.2), 1.0 - 1.5 * i) for i in range(2)]
    prompt, continuation = [5, 6, 7, 8], [9, 10, 11]
    added = load_plain(base, torch.float32)
    logprobs.add(added, stack)
    found = logprobs.scores(added, prompt, continuation)
    rows = Oracle(base).logits([*prompt, *continuation], stack)[len(prompt) - 1 : -1].double().log_softmax(-1)
    expected = [float(row[token]) for row, token in zip(rows, continuation, strict=True)]
    assert found == pytest.approx(expected, abs=1e-4)


def test_parameters_are_those_of_a_trained_adapter(default_base: Path) -> None:
    folder = ROOT / "adapters" / "json"
    config = json.loads((folder / "adapter_config.json").read_text())
    trained = load_file(folder / "adapter_model.safetensors")
    modules = {name.removeprefix("base_model.model.").partition(".lora_")[0] for name in trained}
    changed = {name: sizes for name, sizes in linears(default_base).items() if name in modules}
    assert count(changed, config["r"], ()) == sum(tensor.numel() for tensor in trained.values())
