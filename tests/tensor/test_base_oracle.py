"""The oracle itself: against the formula written out, and with its own shortcuts off."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from safetensors.torch import load_file

from tests.oracle import Oracle, load_plain

IDS = [5, 70, 300, 12, 9, 44, 280, 7, 33, 101]
LAYERS = (1, 2)


@pytest.fixture(scope="module")
def base(tiny_base: Callable[..., Path]) -> Path:
    return tiny_base("qwen2")


@pytest.fixture(scope="module")
def adapters(base: Path, make_adapter: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("adapters")
    return [
        make_adapter(root / "a", base, rank=4, alpha=8, seed=1),
        make_adapter(root / "b", base, rank=6, alpha=3, targets=["q_proj", "down_proj"], rslora=True, seed=2),
        make_adapter(root / "c", base, rank=2, targets=["v_proj"], layers=LAYERS, seed=3),
    ]


def _by_hand(base: Path, stack: list[tuple[Path, float]]) -> torch.Tensor:
    """Logits of a dense model whose weights are W + sum of w·s·BA, from the files alone."""
    model = load_plain(base, torch.float32)
    for name, module in list(model.named_modules()):
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        if state is None:
            continue
        weight = dequantize_4bit(module.weight.data, state)
        for folder, w in stack:
            config = json.loads((folder / "adapter_config.json").read_text())
            s = config["lora_alpha"] / (config["r"] ** 0.5 if config["use_rslora"] else config["r"])
            tensors = load_file(folder / "adapter_model.safetensors")
            key = f"base_model.model.{name}.lora_{{}}.weight"
            if key.format("A") in tensors:
                weight = weight + w * s * tensors[key.format("B")] @ tensors[key.format("A")]
        dense = torch.nn.Linear(module.in_features, module.out_features, bias=module.bias is not None)
        dense.weight.data, dense.bias = weight, module.bias
        model.set_submodule(name, dense)
    with torch.no_grad():
        return model(input_ids=torch.tensor([IDS])).logits[0]


@pytest.mark.parametrize("picks", [[(0, 1.0)], [(1, 0.7)], [(0, 0.7), (1, 0.5)], [(2, -1.5), (1, 1.3), (0, 0.25)], []])
def test_a_stack_is_the_weighted_sum_of_deltas(
    picks: list[tuple[int, float]], base: Path, adapters: list[Path], oracle_of: Callable[[Path], Oracle]
) -> None:
    stack = [(adapters[i], w) for i, w in picks]
    expected = _by_hand(base, stack)
    assert torch.allclose(oracle_of(base).logits(IDS, stack), expected, atol=1e-4)
    if stack:
        assert (expected - _by_hand(base, [])).abs().max() > 0.3, "adapters too weak to tell right from wrong"


def test_order_of_questions_does_not_matter(
    base: Path, adapters: list[Path], oracle_of: Callable[[Path], Oracle]
) -> None:
    a, b, _ = adapters
    fresh, used = Oracle(base), oracle_of(base)
    used.logits(IDS, [(a, 3.0), (b, 0.1)])
    assert torch.equal(used.logits(IDS, [(a, 0.5)]), fresh.logits(IDS, [(a, 0.5)]))
    assert torch.equal(used.logits(IDS), Oracle(base).logits(IDS))


def test_adapters_touch_only_what_they_name(adapters: list[Path]) -> None:
    keys = load_file(adapters[2] / "adapter_model.safetensors").keys()
    assert {k.split(".self_attn.")[0].rsplit(".", 1)[1] for k in keys} == {str(i) for i in LAYERS}
    assert all("v_proj" in k for k in keys)


def test_greedy_is_argmax_without_a_cache(
    base: Path, adapters: list[Path], oracle_of: Callable[[Path], Oracle]
) -> None:
    stack = [(adapters[0], 1.0), (adapters[1], 0.5)]
    oracle, ids, expected = oracle_of(base), list(IDS), []
    for _ in range(12):
        expected.append(int(oracle.logits(ids, stack)[-1].argmax()))
        ids.append(expected[-1])
    assert oracle.greedy(IDS, 12, stack) == expected
    assert oracle.greedy(IDS, 12, stack, eos=expected[3]) == expected[: expected.index(expected[3]) + 1]
    assert expected != oracle.greedy(IDS, 12), "the stack changes the text"
    assert all(gap >= 0 for _, gap in oracle.greedy_gaps(IDS, 3))


def test_the_same_adapter_twice_is_refused(
    base: Path, adapters: list[Path], oracle_of: Callable[[Path], Oracle]
) -> None:
    with pytest.raises(ValueError, match="twice"):
        oracle_of(base).logits(IDS, [(adapters[0], 1.0), (adapters[0], 1.0)])
