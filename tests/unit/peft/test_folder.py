"""Tensors in and out of PEFT folders, with PEFT as the judge."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from loramux_server.core.errors import Code, Error
from loramux_server.lora.bank import LoraPair
from loramux_server.peft.folder import write_folder
from loramux_server.peft.schema import FINGERPRINT_KEY, check_folder
from tests.peft_read import read_folder
from tests.unit.peft.peft_files import MODULES, Q, config, make, shapes


def random_pairs(
    modules: dict[str, tuple[int, int]] = MODULES,
    rank: int = 2,
    scaling: float = 2.0,
    dtype: torch.dtype = torch.float32,
) -> dict[str, LoraPair]:
    gen = torch.Generator().manual_seed(3)
    return {
        name: LoraPair(
            torch.randn(rank, fan_in, generator=gen).to(dtype),
            torch.randn(fan_out, rank, generator=gen).to(dtype),
            scaling,
        )
        for name, (fan_in, fan_out) in modules.items()
    }


def same(one: dict[str, LoraPair], two: dict[str, LoraPair]) -> bool:
    return one.keys() == two.keys() and all(
        torch.equal(one[k].a, two[k].a)
        and torch.equal(one[k].b, two[k].b)
        and math.isclose(one[k].scaling, two[k].scaling)
        for k in one
    )


def weights(**changed: torch.Tensor) -> dict[str, torch.Tensor]:
    return {k: torch.full(shape, 0.5) for k, shape in shapes().items()} | changed


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_written_is_read(tmp_path: Path, dtype: torch.dtype) -> None:
    pairs = random_pairs(dtype=dtype)
    write_folder(tmp_path / "a", pairs, rank=2, alpha=4, base_name="tiny", base_fingerprint="abc", card="# Card\n")
    found, read = read_folder(tmp_path / "a", MODULES, "abc")
    assert same(pairs, read)
    assert {p.a.dtype for p in read.values()} == {dtype}
    assert found.lora.base_name == "tiny"
    assert found.metadata[FINGERPRINT_KEY] == "abc"
    assert (tmp_path / "a" / "README.md").read_text() == "# Card\n"


def test_mixed_ranks_and_scalings_keep_their_values(tmp_path: Path) -> None:
    pairs = random_pairs() | {Q: random_pairs({Q: MODULES[Q]}, rank=5, scaling=0.7)[Q]}
    write_folder(tmp_path / "a", pairs, rank=2, alpha=4, rslora=True)
    found, read = read_folder(tmp_path / "a", MODULES)
    assert same(pairs, read)
    assert found.rank == 5


def test_layers_are_written(tmp_path: Path) -> None:
    pairs = random_pairs({k: v for k, v in MODULES.items() if ".1." in k})
    write_folder(tmp_path / "a", pairs, rank=2, alpha=4, layers=[1])
    assert check_folder(tmp_path / "a", MODULES).layers == (1,)


def test_targets_that_leave_pairs_out_are_a_defect(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="v_proj"):
        write_folder(tmp_path / "a", random_pairs(), rank=2, alpha=4, target_modules=["q_proj"])
    with pytest.raises(ValueError, match="at least one"):
        write_folder(tmp_path / "b", {}, rank=2, alpha=4)
    assert not list(tmp_path.iterdir())


def test_float16_is_widened(tmp_path: Path) -> None:
    folder = make(tmp_path)
    save_file({k: t.half() for k, t in weights().items()}, folder / "adapter_model.safetensors")
    _, read = read_folder(folder, MODULES)
    assert {p.b.dtype for p in read.values()} == {torch.float32}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_values_that_are_not_finite_are_refused_by_name(tmp_path: Path, value: float, dtype: torch.dtype) -> None:
    folder = make(tmp_path)
    key = f"base_model.model.{Q}.lora_B.weight"
    bad = torch.zeros(8, 2)
    bad[7, 1] = value
    save_file({k: t.to(dtype) for k, t in weights(**{key: bad}).items()}, folder / "adapter_model.safetensors")
    with pytest.raises(Error) as caught:
        read_folder(folder, MODULES)
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert key in caught.value.message


def test_values_that_overflow_the_cast_are_refused(tmp_path: Path) -> None:
    folder = make(tmp_path)
    key = f"base_model.model.{Q}.lora_A.weight"
    save_file(weights(**{key: torch.full((2, 8), 1e5)}), folder / "adapter_model.safetensors")
    read_folder(folder, MODULES)
    with pytest.raises(Error, match="lora_A") as caught:
        read_folder(folder, MODULES, dtype=torch.float16)
    assert caught.value.code is Code.INVALID_ARGUMENT


def test_nothing_is_written_that_is_not_finite(tmp_path: Path) -> None:
    pairs = random_pairs()
    pairs[Q].b[0, 0] = float("nan")
    with pytest.raises(Error) as caught:
        write_folder(tmp_path / "a", pairs, rank=2, alpha=4)
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert not list(tmp_path.iterdir())


LLAMA: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
IDS = torch.arange(1, 13)[None]


def llama() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**LLAMA)).eval()


def linears(model: Any) -> dict[str, tuple[int, int]]:
    return {
        name: (m.in_features, m.out_features)
        for name, m in model.named_modules()
        if isinstance(m, torch.nn.Linear) and name != "lm_head"
    }


def merged_logits(pairs: dict[str, LoraPair]) -> torch.Tensor:
    """Logits of the base with the adapter added to its weights: no PEFT in it."""
    model = llama()
    with torch.no_grad():
        for name, pair in pairs.items():
            model.get_submodule(name).weight += pair.scaling * pair.b @ pair.a
        return model(IDS).logits


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": "all-linear"},
        {"target_modules": ["q_proj", "down_proj"], "use_rslora": True},
        {"target_modules": ["q_proj", "v_proj"], "rank_pattern": {"q_proj": 7}},
        {"target_modules": ["q_proj", "v_proj"], "alpha_pattern": {"layers.0.self_attn.v_proj": 2}},
        {"target_modules": ["o_proj"], "layers_to_transform": [1]},
        {"target_modules": ["o_proj"], "layers_to_transform": 0, "layers_pattern": "layers", "task_type": None},
    ],
)  # fmt: skip
def test_adapters_that_peft_saved(tmp_path: Path, options: dict[str, Any]) -> None:
    from peft import LoraConfig, get_peft_model

    model = llama()
    modules = linears(model)
    peft = get_peft_model(
        model, LoraConfig(**{"task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 6, "init_lora_weights": False} | options)
    )
    with torch.no_grad():
        expected = peft(IDS).logits
    peft.save_pretrained(tmp_path / "peft")
    _, pairs = read_folder(tmp_path / "peft", modules)
    torch.testing.assert_close(merged_logits(pairs), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rslora", [False, True])
def test_adapters_that_peft_loads(tmp_path: Path, rslora: bool) -> None:
    from peft import PeftModel

    model = llama()
    modules = {k: v for k, v in linears(model).items() if ".layers.1." in k}
    pairs = random_pairs(modules, rank=4, scaling=6 / 2 if rslora else 6 / 4)
    odd = "model.layers.1.mlp.up_proj"
    pairs[odd] = random_pairs({odd: modules[odd]}, rank=3, scaling=0.25)[odd]
    write_folder(tmp_path / "a", pairs, rank=4, alpha=6, rslora=rslora, layers=[1], card="# Card")
    peft = PeftModel.from_pretrained(model, tmp_path / "a")
    with torch.no_grad():
        logits = peft(IDS).logits
    assert not torch.allclose(logits, merged_logits({}), atol=1e-2)
    torch.testing.assert_close(logits, merged_logits(pairs), atol=1e-4, rtol=1e-4)
    # and no tensor was left aside
    loaded = {k for k in peft.state_dict() if "lora_" in k}
    assert len(loaded) == len(load_file(tmp_path / "a" / "adapter_model.safetensors"))


def test_the_config_says_what_others_read(tmp_path: Path) -> None:
    write_folder(tmp_path / "a", random_pairs(), rank=2, alpha=4, base_name="org/base", dropout=0.1)
    found = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    expected = config(base_model_name_or_path="org/base", lora_dropout=0.1, bias="none", use_dora=False)
    assert {k: found[k] for k in expected} == expected
