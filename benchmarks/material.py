"""Bases and adapters to measure with, made once per folder: the default base, random ones, random adapters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .job import Base
from .roofline import Shape
from .workloads import ADAPTERS, RANK

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

RANDOM: dict[str, dict[str, Any]] = {
    "random-174m": {
        "hidden_size": 1024,
        "num_hidden_layers": 12,
        "intermediate_size": 2816,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
    },
    "random-1b": {
        "hidden_size": 2048,
        "num_hidden_layers": 16,
        "intermediate_size": 8192,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
}
"""Shapes of Llamas with random weights, by name; the name says how many parameters."""
VOCABULARY, CONTEXT = 32000, 2048
BASES = ("default", *RANDOM)
ALPHA = 32
DELTA = 0.015
"""Spread of the random B: adapters that change what is said without drowning the base."""


def prepare(name: str, folder: Path) -> Base:
    """A base with its adapters, everything below ``folder``. Imports torch; the first time takes up to a minute."""
    from loramux_server.model.base.quantize import prepare_base

    source = None if name == "default" else str(_random_model(name, folder))
    base = prepare_base(source, folder)
    shape = _shape(base)
    adapters = [_adapter(base, folder / "adapters" / name / f"bench-{i:02}", seed=i) for i in range(ADAPTERS)]
    return Base(name, str(base.resolve()), shape, tuple(map(str, adapters)), _gguf() if name == "default" else "")


def _random_model(name: str, folder: Path) -> Path:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from loramux_server.model.base.quantize import prepare_base

    target = (folder / "models" / name).resolve()
    if (target / "tokenizer.json").is_file():  # written last
        return target
    tokenizer = _cut_tokenizer(prepare_base(None, folder), VOCABULARY)
    config: Any = LlamaConfig(
        **RANDOM[name],
        vocab_size=VOCABULARY,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    config.dtype = torch.bfloat16
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(target)
    tokenizer.save_pretrained(target)
    return target


def _cut_tokenizer(folder: Path, size: int) -> PreTrainedTokenizerFast:
    """The first ``size`` tokens of a byte-level BPE: its ids are in the order of its merges, so that is one too."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    state = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    bpe = state["model"]
    bpe["vocab"] = {token: id for token, id in bpe["vocab"].items() if id < size}
    pairs = [tuple(m.split(" ", 1)) if isinstance(m, str) else tuple(m) for m in bpe["merges"]]
    bpe["merges"] = [[a, b] for a, b in pairs if {a, b, a + b} <= bpe["vocab"].keys()]
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)),
        pad_token="<|endoftext|>",
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        model_max_length=CONTEXT,
    )


def linears(base: Path) -> dict[str, tuple[int, int]]:
    """Name -> (in, out) of every linear of an NF4 folder but the head. Imports torch."""
    from loramux_server.model.base.load import linear_modules

    return linear_modules(skeleton(base))


def skeleton(base: Path) -> Any:
    """The model of an NF4 folder without weights, its linears plain."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(base, local_files_only=True)
    del config.quantization_config
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def _shape(base: Path) -> Shape:
    from loramux_server.model.base.load import linear_modules

    model = skeleton(base)
    config = model.config
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return Shape(
        linears=tuple(linear_modules(model).values()),
        hidden=config.hidden_size,
        vocab=config.vocab_size,
        layers=config.num_hidden_layers,
        query_width=config.num_attention_heads * head_dim,
        kv_width=config.num_key_value_heads * head_dim,
    )


def _adapter(base: Path, folder: Path, seed: int) -> Path:
    """A random adapter on all linears, in PEFT's format."""
    import torch
    from peft import LoraConfig
    from safetensors.torch import save_file

    from loramux_server.model.base.load import linear_modules

    folder = folder.resolve()
    if (folder / "adapter_config.json").is_file():  # written last
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    modules = linear_modules(skeleton(base))
    draw = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, (inputs, outputs) in modules.items():
        a = torch.randn(RANK, inputs, generator=draw) / inputs**0.5
        b = torch.randn(outputs, RANK, generator=draw) * DELTA
        tensors[f"base_model.model.{name}.lora_A.weight"] = a.to(torch.bfloat16)
        tensors[f"base_model.model.{name}.lora_B.weight"] = b.to(torch.bfloat16)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    targets = sorted({name.rpartition(".")[2] for name in modules})
    made = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=targets, task_type="CAUSAL_LM")
    made.base_model_name_or_path = base.name
    made.save_pretrained(folder)
    return folder


def _gguf() -> str:
    """The file that the default base was made from, for peers that read GGUF; empty if it came from elsewhere."""
    from loramux_server.core.errors import Error
    from loramux_server.model.base.source import locate

    try:
        source = locate(None)
    except Error:
        return ""
    return str(source.path) if source.kind == "gguf" else ""
