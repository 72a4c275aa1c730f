"""The default base: its NF4 copy, and its weights in bfloat16 from the very source that the copy was made from."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from loramux_server.model.base.gguf import GGUFFile
from loramux_server.model.base.parts import Part, loading_in_parts
from loramux_server.model.base.quantize import prepare_base
from loramux_server.model.base.source import Source, locate_again, read_marker

from . import loop

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NEAR = 0.15
"""Relative error above which NF4 weights are of another base: their own has 0.09 or so."""


def run(settings: dict[str, str]) -> Iterator[dict[str, Any]]:
    """``state``: folder for the NF4 copy; ``folder``: where the 16-bit weights go. Both are made once."""
    nf4 = prepare_base(None, Path(settings["state"]))
    folder, marker = Path(settings["folder"]), read_marker(nf4)
    if not folder.is_dir():
        made = folder.with_suffix(".tmp")
        shutil.rmtree(made, ignore_errors=True)
        read(locate_again(marker)).save_pretrained(made)
        if (error := apart(made, nf4)) > NEAR:
            raise ValueError(f"{made} and {nf4} are not the same base: their weights differ by {error:.0%}")
        made.rename(folder)
    yield {"nf4": str(nf4), "bfloat16": str(folder), "name": marker["name"]}


class InBfloat16:
    """Takes the parts of a model and keeps them (:class:`~loramux_server.model.base.parts.Receiver`)."""

    def __init__(self) -> None:
        self.weights: dict[str, Tensor] = {}

    def begin(self, model: PreTrainedModel, parts: list[Part]) -> int:
        return 0

    def take(self, model: PreTrainedModel, part: Part, loaded: dict[str, Tensor]) -> None:
        self.weights |= {name: weight.to(torch.bfloat16) for name, weight in loaded.items()}


def read(source: Source) -> Any:
    """The model of a source in bfloat16."""
    from transformers import AutoModelForCausalLM

    if source.kind != "gguf":
        return AutoModelForCausalLM.from_pretrained(source.path, dtype=torch.bfloat16, local_files_only=True)
    file, kept = GGUFFile(source.path), InBfloat16()
    with loading_in_parts(kept, source.name, file.parts):
        model = file.read_model()
    model = model.to(torch.bfloat16)
    model.load_state_dict(kept.weights, strict=False, assign=True)
    model.tie_weights()
    return model


def apart(bfloat16: Path, nf4: Path) -> float:
    """Relative error of the first NF4 linear's weights."""
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn import Linear4bit

    packed = loop.load_model(nf4, torch.float32)
    name, linear = next((n, m) for n, m in packed.named_modules() if isinstance(m, Linear4bit))
    expected = loop.load_model(bfloat16, torch.float32).get_submodule(name).weight.detach()
    found = dequantize_4bit(linear.weight.data, linear.weight.quant_state)
    return float((found.float() - expected).norm() / expected.norm())
