"""Folders as the tools of others write them: their configurations whole, with everything that is said by the way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from loramux_server.peft.schema import check_folder
from tests.unit.peft.peft_files import MODULES, config, header, make, pack, shapes

PEFT_0_11: dict[str, Any] = {
    "alpha_pattern": {}, "auto_mapping": None, "base_model_name_or_path": "org/base", "bias": "none",
    "fan_in_fan_out": False, "inference_mode": True, "init_lora_weights": True, "layer_replication": None,
    "layers_pattern": None, "layers_to_transform": None, "loftq_config": {}, "lora_dropout": 0.05,
    "megatron_config": None, "megatron_core": "megatron.core", "modules_to_save": None, "peft_type": "LORA",
    "rank_pattern": {}, "revision": None, "use_dora": False, "use_rslora": False,
}  # fmt: skip
"""Of 2024: most adapters on hubs look like this."""

PEFT_0_18: dict[str, Any] = {
    **PEFT_0_11, "alora_invocation_tokens": None, "arrow_config": None, "corda_config": None,
    "ensure_weight_tying": False, "eva_config": None, "exclude_modules": None, "lora_bias": False,
    "peft_version": "0.18.1", "qalora_group_size": 16, "target_parameters": None, "trainable_token_indices": None,
    "use_qalora": False,
}  # fmt: skip

TOOLS: dict[str, dict[str, Any]] = {
    "PEFT of 2024": PEFT_0_11,
    "PEFT of 2026": PEFT_0_18,
    "TRL": {**PEFT_0_18, "lora_dropout": 0.0, "task_type": "CAUSAL_LM"},
    "TRL without a task": {**PEFT_0_18, "task_type": None},
    "Unsloth": {
        **PEFT_0_18, "lora_dropout": 0, "base_model_name_or_path": "unsloth/base-bnb-4bit",
        "auto_mapping": {"base_model_class": "LlamaForCausalLM", "unsloth_fixed": True,
                         "parent_library": "transformers.models.llama.modeling_llama"},
    },
    "Unsloth with rsLoRA": {**PEFT_0_18, "use_rslora": True, "loftq_config": None},
    "Axolotl": {**PEFT_0_11, "fan_in_fan_out": None, "task_type": "CAUSAL_LM", "loftq_config": {}},
    "Axolotl, some layers": {**PEFT_0_18, "fan_in_fan_out": None, "layers_to_transform": [0, 1]},
    "LLaMA-Factory": {**PEFT_0_18, "inference_mode": True, "lora_dropout": 0.0, "revision": "main"},
}  # fmt: skip


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_the_adapters_of_tools_are_taken(tmp_path: Path, tool: str, dtype: str) -> None:
    """With the order of names, extra files and metadata that tools leave beside them."""
    conf = {**config(), **TOOLS[tool], "target_modules": ["v_proj", "q_proj"]}
    folder = make(tmp_path / "adapter", conf, pack(header(shapes(), dtype)))
    for extra in ("README.md", "tokenizer.json", "training_args.bin", "chat_template.jinja"):
        (folder / extra).write_text("not looked at")
    found = check_folder(folder, MODULES)
    assert [m.name for m in found.modules] == sorted(MODULES)
    assert found.lora.rslora is TOOLS[tool]["use_rslora"]


def test_the_fields_that_peft_writes_today_are_known() -> None:
    """A setting that a new PEFT adds is empty by default, and so taken; those of today are named."""
    from peft import LoraConfig

    written = LoraConfig(task_type="CAUSAL_LM").to_dict()
    assert written.keys() - PEFT_0_18.keys() - {"task_type", "peft_version", "r", "lora_alpha", "target_modules"} <= {
        key for key, value in written.items() if not value or key == "runtime_config"
    }
