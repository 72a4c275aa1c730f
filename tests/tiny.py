"""Tiny random models of many architectures, a small tokenizer for them, and random LoRA adapters.

Everything random is seeded, so a folder's content follows from the arguments alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.architectures import CASES

VOCAB = 384
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_TEXT = (
    "The quick brown fox jumps over the lazy dog while seven wizards quietly brew a better potion. "
    "Which company makes the red kettle, and where is its head office? The office is in the harbour. "
    "Questions have answers; answers have reasons, and the reasons are written down in the book of the town. "
)

_SHARED: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.15,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}

ARCHITECTURES = [
    pytest.param(arch, marks=() if arch in ("llama", "gemma2") else pytest.mark.slow)
    for arch, case in CASES.items()
    if case.outcome == "exact"
]
"""The model types that are served, as cases of a test: `make test` takes the plainest one and the richest one."""


@cache
def tokenizer() -> Any:
    """A byte-level BPE tokenizer of about VOCAB tokens with ChatML and its special tokens at 0, 1, 2."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([_TEXT], trainer)
    made = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token="<|endoftext|>",
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        model_max_length=256,
    )
    made.chat_template = CHATML
    return made


def write_model(folder: Path, arch: str, *, seed: int = 0, **overrides: Any) -> Path:
    """Write a random float32 model of architecture ``arch`` with its tokenizer, as transformers saves them.

    Norms and biases are random too, so that a forgotten one shows. ``overrides`` go into the configuration.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(arch, **{**_SHARED, **CASES[arch].config, **overrides})
    config.dtype = torch.float32
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 1:
                    parameter.add_(0.1 * torch.randn_like(parameter))
    model.generation_config.eos_token_id = 2
    model.generation_config.pad_token_id = 0
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def write_adapter(
    folder: Path,
    base: Path,
    *,
    rank: int = 8,
    alpha: float = 16.0,
    targets: str | Sequence[str] = "all-linear",
    layers: Sequence[int] | None = None,
    rslora: bool = False,
    rank_pattern: dict[str, int] | None = None,
    alpha_pattern: dict[str, float] | None = None,
    seed: int = 0,
    scale: float = 0.3,
) -> Path:
    """Write a random adapter for the NF4 folder ``base`` in PEFT's format, through PEFT.

    B is random, not zero: each module's delta has ``scale`` times the norm of the weight that it changes.
    """
    import torch
    from bitsandbytes.functional import dequantize_4bit
    from peft import LoraConfig, get_peft_model
    from peft.tuners.lora import LoraLayer

    from tests.oracle import load_plain

    plain = load_plain(base, torch.float32)
    if targets == "all-linear":
        # By name: PEFT's own "all-linear" also takes in the experts of some mixtures, which are no linears.
        head = plain.get_output_embeddings()
        linears = [n for n, m in plain.named_modules() if isinstance(m, torch.nn.Linear) and m is not head]
        targets = sorted({n.rpartition(".")[2] for n in linears})
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules=targets if isinstance(targets, str) else list(targets),
        layers_to_transform=list(layers) if layers is not None else None,
        use_rslora=rslora,
        rank_pattern=rank_pattern or {},
        alpha_pattern=alpha_pattern or {},
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(plain, config)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if not isinstance(module, LoraLayer):
                continue
            weight: Any = module.get_base_layer().weight
            state = getattr(weight, "quant_state", None)
            size = (dequantize_4bit(weight.data, state) if state is not None else weight.data).norm()
            a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
            a.copy_(torch.randn(a.shape, generator=draw) / a.shape[1] ** 0.5)
            b.copy_(torch.randn(b.shape, generator=draw))
            delta = module.scaling["default"] * ((b.T @ b) * (a @ a.T)).sum().sqrt()  # norm of s·BA
            b.mul_(scale * size / delta)
    model.peft_config["default"].base_model_name_or_path = base.name
    # Not "auto", which would ask a hub whether the base's vocabulary grew.
    model.save_pretrained(folder, save_embedding_layers=False)
    return folder
