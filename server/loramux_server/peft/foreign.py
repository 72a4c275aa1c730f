"""Adapters that other tools wrote: what they are, seen from their names, and how to make PEFT folders of them."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping

WRAPPERS = ("_checkpoint_wrapped_module", "_fsdp_wrapped_module", "_orig_mod", "module")
"""Parts of names that activation checkpointing, FSDP, torch.compile and DDP leave there. They name no module."""

MLX = (
    "it was written by MLX, which transposes A and B and calls them lora_a and lora_b; convert it: transpose each"
    " tensor, name it base_model.model.<module>.lora_A.weight (lora_B), and set lora_alpha to MLX's scale times rank"
)
MISTRAL_FINETUNE = (
    "it was written by mistral-finetune, which names modules as Mistral does (layers.0.attention.wq); convert it to the"
    " names of transformers (model.layers.0.self_attn.q_proj), and permute the rows of lora_B of wq and wk as"
    " transformers' convert_mistral_weights_to_hf.py does for their weights"
)
ORIGINAL_LLAMA = (
    "its modules have the names of Meta's own checkpoints (layers.0.attention.wq); convert it to the names of"
    " transformers (model.layers.0.self_attn.q_proj)"
)
KOHYA = "it was written by kohya's scripts or for diffusion models (lora_unet_, lora_te_); it is for no language model"
DORA = "it belongs to DoRA, which is not supported; train with use_dora=False"

_LAYER = re.compile(r"(?:^|\.)((?:layers|h|blocks)\.\d+\..+)$", re.ASCII)


def without_wrappers(module: str) -> str:
    """A module's name without the parts that wrappers added to it."""
    return ".".join(part for part in module.split(".") if part not in WRAPPERS)


def tool_of(keys: Iterable[str]) -> str:
    """What wrote tensors of these names, and how to convert them; empty where the names are PEFT's."""
    for key in keys:
        if key.endswith((".lora_a", ".lora_b")):
            return MLX
        if "lora_magnitude_vector" in key or key.endswith(".dora_scale"):
            return DORA
        if key.startswith(("lora_unet_", "lora_te")):
            return KOHYA
        if re.search(r"(?:^|\.)layers\.\d+\.(?:attention\.w[qkvo]|feed_forward\.w[123])\.lora_", key):
            return ORIGINAL_LLAMA if key.startswith("base_model.model.") else MISTRAL_FINETUNE
    return ""


def other_prefix(unknown: Collection[str], modules: Mapping[str, object]) -> str:
    """In words: the modules are those of the base, and only what stands before the layers differs. Else empty."""
    here = {tail: module for module in modules if (tail := _tail(module))}
    pairs = [(name, here.get(_tail(name))) for name in unknown]
    if not pairs or any(match is None for _, match in pairs):
        return ""
    name, match = pairs[0]
    assert match is not None
    tail = _tail(name)
    theirs, ours = name[: len(name) - len(tail)], match[: len(match) - len(tail)]
    return (
        f"only the prefix of its modules differs: {name} is {match} here. If it was trained on the same text model,"
        f" rename its tensors from base_model.model.{theirs}* to base_model.model.{ours}*"
    )


def _tail(module: str) -> str:
    found = _LAYER.search(module)
    return found[1] if found else ""
