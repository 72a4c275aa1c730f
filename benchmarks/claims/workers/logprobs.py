"""Log-probabilities under the sum of deltas: each linear is replaced by one with W + sum of weight * scaling * B A."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from safetensors.torch import load_file
from torch import Tensor, nn

from . import loop


def run(settings: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """``nf4``, ``stacks`` of pairs of PEFT folder and weight, ``texts`` of prompt ids and continuation ids."""
    for stack in settings["stacks"]:
        model = loop.load_model(Path(settings["nf4"]), torch.float32).eval()
        add(model, [(Path(folder), weight) for folder, weight in stack])
        found = [scores(model, prompt, continuation) for prompt, continuation in settings["texts"]]
        yield {"logprobs": found}


def add(model: nn.Module, stack: list[tuple[Path, float]]) -> None:
    """Make every linear that the stack changes a plain float32 one that holds the sum."""
    deltas: dict[str, Tensor] = {}
    for folder, weight in stack:
        config = json.loads((folder / "adapter_config.json").read_text())
        rank, alpha = config["r"], config["lora_alpha"]
        scaling = alpha / rank**0.5 if config.get("use_rslora") else alpha / rank
        tensors = load_file(folder / "adapter_model.safetensors")
        for key in (key for key in tensors if key.endswith(".lora_A.weight")):
            name = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            low, high = tensors[key].double(), tensors[key.replace(".lora_A.", ".lora_B.")].double()
            deltas[name] = deltas.get(name, 0.0) + weight * scaling * (high @ low)
    for name, delta in deltas.items():
        parent, _, last = name.rpartition(".")
        old = model.get_submodule(name)
        assert isinstance(old, Linear4bit)
        base = dequantize_4bit(old.weight.data, old.weight.quant_state).double()
        new = nn.Linear(base.shape[1], base.shape[0], bias=False)
        new.weight.data = (base + delta).float()
        setattr(model.get_submodule(parent), last, new)


def scores(model: Any, prompt: list[int], continuation: list[int]) -> list[float]:
    """Log-probabilities of a continuation's tokens."""
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([[*prompt, *continuation]]), use_cache=False).logits[0]
    chosen = logits[len(prompt) - 1 : -1].double().log_softmax(-1)
    return chosen.gather(1, torch.tensor(continuation)[:, None])[:, 0].tolist()
