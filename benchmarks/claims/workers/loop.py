"""A plain training loop over transformers and PEFT: what a job of the server is compared with.

The rows, their order, the learning rates of its steps and the optimizer are those of the server's jobs, so that only
the base and what is trained differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from loramux_server.core.jobs import TrainRow, TrainSpec
from loramux_server.training.schedule import Schedule

Way = Literal["full", "lora"]
"""All weights of the base, or a LoRA adapter on all its linears."""
EVALUATED = 16
"""Rows that are evaluated or answered together."""


def load_model(folder: Path, dtype: torch.dtype) -> Any:
    """A base as transformers loads it: of an NF4 folder with bitsandbytes' linears, else with plain ones."""
    from bitsandbytes.nn import Linear4bit, Params4bit
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True, device_map="cpu")
    for module in model.modules():
        if isinstance(module, Linear4bit):
            # Else bitsandbytes repacks the weights for its AVX512-BF16 kernel, which drops gradients.
            module.support_avx512bf16_for_cpu = False
            module.compute_dtype, module.compute_type_is_set = dtype, True
    for parameter in model.parameters():
        # transformers leaves what it did not quantise in the file's type, whatever dtype says.
        if not isinstance(parameter, Params4bit) and parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
    return model


def trainable(model: Any, way: Way, spec: TrainSpec) -> Any:
    """The model with what is trained; LoRA's parameters are float32, drawn by the seed of ``spec``."""
    if way == "full":
        return model.requires_grad_(True)
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(spec.seed)
    config = LoraConfig(
        r=spec.rank, lora_alpha=int(spec.alpha), target_modules="all-linear", lora_dropout=0.0, task_type="CAUSAL_LM"
    )
    return get_peft_model(model, config)


def train(model: Any, rows: Sequence[TrainRow], spec: TrainSpec, dtype: torch.dtype) -> list[float]:
    """Train what wants gradients; the losses of the steps. ``dtype`` is that of the forward pass."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, betas=(spec.beta1, spec.beta2), weight_decay=spec.weight_decay)
    order = Schedule(spec, len(rows))
    losses = []
    model.train()
    for step in range(order.total_steps):
        batch = [rows[i] for i in order.batch(step)]
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            loss = _loss_sum(model, batch) / _learned(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, spec.max_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = order.learning_rate(step)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(float(loss.detach()))
    return losses


def evaluate(model: Any, rows: Sequence[TrainRow]) -> float:
    """Mean loss of the loss tokens."""
    model.eval()
    with torch.no_grad():
        parts = [float(_loss_sum(model, part)) for part in _parts(rows)]
    return sum(parts) / _learned(rows)


def answers(model: Any, prompts: Sequence[Sequence[int]], max_tokens: int, end: int) -> list[list[int]]:
    """Greedy answers as token ids, without what follows the end token."""
    model.eval()
    found = []
    for start in range(0, len(prompts), EVALUATED):
        part = prompts[start : start + EVALUATED]
        width = max(map(len, part))
        ids = torch.tensor([[end] * (width - len(p)) + list(p) for p in part])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in part])
        with torch.no_grad():
            made = model.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=max_tokens, do_sample=False, eos_token_id=end,
                pad_token_id=end, repetition_penalty=1.0,
            )  # fmt: skip
        found += [row[: row.index(end)] if end in row else row for row in made[:, width:].tolist()]
    return found


def _loss_sum(model: Any, rows: Sequence[TrainRow]) -> Tensor:
    """Summed loss of the loss tokens; logits are made for these only."""
    width = max(len(row.input_ids) for row in rows)
    ids = torch.tensor([[*row.input_ids, *[0] * (width - len(row.input_ids))] for row in rows])
    learned = torch.tensor([[*row.labels, *[False] * (width - len(row.labels))] for row in rows], dtype=torch.bool)
    mask = torch.tensor([[1] * len(row.input_ids) + [0] * (width - len(row.input_ids)) for row in rows])
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    states = plain.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    logits = plain.lm_head(states[:, :-1][learned[:, 1:]])
    return cross_entropy(logits.float(), ids[:, 1:][learned[:, 1:]], reduction="sum")


def _learned(rows: Sequence[TrainRow]) -> int:
    return sum(sum(row.labels[1:]) for row in rows)


def _parts(rows: Sequence[TrainRow]) -> list[Sequence[TrainRow]]:
    return [rows[start : start + EVALUATED] for start in range(0, len(rows), EVALUATED)]
