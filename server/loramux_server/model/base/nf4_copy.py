"""The weights of a model on their way into its NF4 copy: a part at a time, quantised, in the names of its files."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from bitsandbytes.nn import Params4bit
from torch import Tensor, nn

from ...core.errors import Code, Error
from . import nf4
from .parts import Part
from .shards import ShardWriter
from .source import BLOCK, SETTINGS

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)

SPARE_BYTES = 64 << 20
"""Left free on the disk beside the weights: for the tokenizer, and for whoever writes at the same time."""


class Nf4Copy:
    """Receives the parts of a model (:class:`.parts.Receiver`) and writes those that an earlier try did not.

    ``rest``: the type of what is not quantised; None: as the model has it. ``progress`` is told 0 to 1, by bytes of the
    source. Raises RESOURCE_EXHAUSTED before the first byte is written if the copy does not fit on the disk.
    """

    def __init__(self, folder: Path, rest: torch.dtype | None, progress: Callable[[float], None]) -> None:
        self._folder, self.rest, self._progress = folder, rest, progress
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._packed: set[str] = set()
        self._read = self._total = 0
        self._shards: ShardWriter
        self.keep: list[str] = []
        """Linears left in 16 bits: the head first, then what does not fit NF4."""
        self.notes: list[str] = []

    def begin(self, model: PreTrainedModel, parts: list[Part]) -> int:
        head = model.get_output_embeddings()
        linears = [(n, m) for n, m in model.named_modules() if type(m) is nn.Linear]
        misfits = [n for n, m in linears if m is not head and not _fits(model, n, m)]
        self.keep = [*([n for n, m in linears if m is head] or ["lm_head"]), *misfits]
        self._packed = {f"{n}.weight" for n, _ in linears} - {f"{n}.weight" for n in self.keep}
        self.notes = [
            f"{name} kept in 16 bits: it does not fit NF4 blocks of {BLOCK} or asks for more bits" for name in misfits
        ] + _no_linears(model)
        self._shards = ShardWriter(self._folder, _maker(len(parts)))
        done = self._shards.parts_done
        self._check_disk(model)
        self._total = sum(part.nbytes for part in parts)
        self._read = sum(part.nbytes for part in parts[:done])
        if done:
            self._progress(self._read / self._total)
        return done

    def take(self, model: PreTrainedModel, part: Part, loaded: dict[str, Tensor]) -> None:
        from transformers.core_model_loading import revert_weight_conversion

        _tie(model, loaded)
        tensors: dict[str, Any] = {}
        size, seen = sum(value.nbytes for value in loaded.values()), 0
        for key, value in loaded.items():
            tensors |= self._convert(key, value)
            seen += value.nbytes
            self._progress((self._read + part.nbytes * seen / size) / self._total)
        self._read += part.nbytes
        self._shards.add(revert_weight_conversion(model, tensors))

    def finish(self) -> None:
        """Write what is not written yet, and name the files."""
        self._shards.finish()

    def _convert(self, key: str, value: Tensor) -> dict[str, Tensor]:
        if key in self._packed:
            weight = self._quantise(value)
            states = weight.quant_state.as_dict(packed=True)
            return {key: weight.data, **{f"{key}.{name}": state for name, state in states.items()}}
        return {key: value if self.rest is None or not value.is_floating_point() else value.to(self.rest)}

    def _quantise(self, weight: Tensor) -> Params4bit:
        try:
            return nf4.quantise(weight, BLOCK, self._device)
        except RuntimeError as error:
            if self._device.type == "cpu":
                raise
            log.warning("the rest of the base is quantised on the CPU, to the same values: %s", error)
            self._device = torch.device("cpu")  # the GPU is full, or others' alone
        return nf4.quantise(weight, BLOCK, self._device)

    def _check_disk(self, model: PreTrainedModel) -> None:
        needed = SPARE_BYTES - self._shards.nbytes + copy_bytes(model, self._packed, self.rest)
        free = shutil.disk_usage(self._folder).free
        if free < needed:
            raise Error(
                Code.RESOURCE_EXHAUSTED,
                f"the NF4 copy needs {needed / 1e9:.1f} GB more on the disk under {self._folder.parent}, where "
                f"{free / 1e9:.1f} GB are free; free space or choose another --state-dir",
                reason="DISK_FULL",
            )


def copy_bytes(model: PreTrainedModel, packed: set[str], rest: torch.dtype | None) -> int:
    """Bytes of a copy's weights, by shape: those named ``packed`` in NF4, others in ``rest`` (None: as they are)."""
    total = 0
    for key, value in model.state_dict().items():
        wide = value.element_size() if rest is None else rest.itemsize
        if key not in model.all_tied_weights_keys:
            total += int(value.numel() * (nf4.BYTES if key in packed else wide))
    return total


def _maker(parts: int) -> dict[str, Any]:
    """What decides how a source is taken apart: files of an earlier try are kept where it is the same."""
    import transformers

    return {"settings": SETTINGS, "transformers": transformers.__version__, "parts": parts}


def _fits(model: PreTrainedModel, name: str, module: nn.Linear) -> bool:
    """Whether blocks lie within rows, which the fast kernels need, and the model allows fewer bits at all."""
    wide = set(model._keep_in_fp32_modules or ()) | set(model._keep_in_fp32_modules_strict or ())
    return module.in_features % BLOCK == 0 and not any(part in wide for part in name.split("."))


def _no_linears(model: PreTrainedModel) -> list[str]:
    """Notes on large weights that are not linear layers: experts of mixtures, GPT-2's transposed layers."""
    names = [n for n, p in model.named_parameters() if p.dim() >= 3]
    names += [f"{n}.weight" for n, m in model.named_modules() if type(m).__name__ == "Conv1D"]
    kinds = sorted({".".join("*" if part.isdigit() else part for part in n.split(".")) for n in names})
    return [f"{kind} kept in 16 bits: not a linear layer" for kind in kinds]


def _tie(model: PreTrainedModel, loaded: dict[str, Tensor]) -> None:
    """Keep one of two weights that are tied, under the name that transformers looks for."""
    for target, source in model.all_tied_weights_keys.items():
        if target in loaded and source not in loaded:
            loaded[source] = loaded.pop(target)
        elif target in loaded and torch.equal(loaded[target], loaded[source]):
            del loaded[target]
