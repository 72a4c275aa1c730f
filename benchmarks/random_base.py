"""Bases with random weights, of the shapes of well-known ones, written a layer at a time whatever their size."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

SHAPES: dict[str, dict[str, Any]] = {
    "70b": {
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
    },
    "8b": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
    "3b": {
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 28,
        "num_attention_heads": 24,
        "num_key_value_heads": 8,
        "tie_word_embeddings": True,
    },
    "tiny": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 49152,
    },
}
"""Configurations of Llamas: 3.1 with 70 and 8, and 3.2 with 3 billion weights."""
SHARED = {"vocab_size": 128256, "max_position_embeddings": 131072}
SPREAD = 0.02
"""Of the weights."""


def on_meta(shape: str) -> PreTrainedModel:
    """The model of a shape without any weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    given = {**SHARED, **SHAPES[shape], "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    config = LlamaConfig(**given, dtype="bfloat16")
    with torch.device("meta"):
        model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.generation_config.eos_token_id = 2
    return model


def write_16_bit(shape: str, folder: Path, tokenizer: Path) -> int:
    """Write the model in bfloat16, a file for each layer, with the tokenizer of another folder. Gives its bytes."""
    from safetensors.torch import save_file

    model = on_meta(shape)
    _write_rest(model, folder, tokenizer)
    weights: dict[str, str] = {}
    total = 0
    for number, part in enumerate(_parts(model)):
        name = f"model-{number:05}.safetensors"
        tensors = _drawn(model, part)
        save_file(tensors, folder / name, metadata={"format": "pt"})
        weights |= dict.fromkeys(part, name)
        total += sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weights}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return total


def write_nf4(shape: str, folder: Path, tokenizer: Path) -> None:
    """Write the NF4 copy of such a model without the model itself, which needs four times the disk."""
    from loramux_server.model.base.nf4_copy import Nf4Copy
    from loramux_server.model.base.parts import Part
    from loramux_server.model.base.quantize import write_config

    model = on_meta(shape)
    groups = list(_parts(model))
    sizes = {name: tensor.nbytes for name, tensor in model.state_dict().items()}
    parts = [Part(sum(sizes[name] for name in group), lambda _: nullcontext({})) for group in groups]
    folder.mkdir(parents=True)
    copy = Nf4Copy(folder, None, lambda done: None)
    copy.begin(model, parts)
    for group, part in zip(groups, parts, strict=True):
        copy.take(model, part, _drawn(model, group))
    copy.finish()
    write_config(model, copy, folder)
    _copy_tokenizer(tokenizer, folder)


def _parts(model: PreTrainedModel) -> Iterator[list[str]]:
    """Names of weights that are written together: a layer's, or one outside of the layers."""
    from loramux_server.model.base.parts import group_of

    groups: dict[str, list[str]] = {}
    for name in model.state_dict():
        if name not in model.all_tied_weights_keys:
            groups.setdefault(group_of(name), []).append(name)
    yield from groups.values()


def _drawn(model: PreTrainedModel, names: list[str]) -> dict[str, Tensor]:
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    tensors = {}
    for name in names:
        like = model.get_parameter(name)
        drawn = torch.ones(like.shape) if like.dim() == 1 else SPREAD * torch.randn(like.shape, device=device)
        tensors[name] = drawn.to("cpu", like.dtype)
    return tensors


def _write_rest(model: PreTrainedModel, folder: Path, tokenizer: Path) -> None:
    folder.mkdir(parents=True)
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    _copy_tokenizer(tokenizer, folder)


def _copy_tokenizer(source: Path, folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (source / name).is_file():
            (folder / name).write_bytes((source / name).read_bytes())
