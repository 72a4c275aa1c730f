"""Load an NF4 folder for serving and training: frozen, in one compute dtype, on one device."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from bitsandbytes.nn import Linear4bit, Params4bit
from torch import nn

from ...core.errors import Code, Error, invalid_field
from . import nf4, quiet
from .fingerprint import fingerprint, stored_tensors
from .source import BLOCK, read_marker

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SCALE_BYTES = 4 / BLOCK
"""Of a weight in NF4 on a GPU: the scale of its block in float32, beside that of double quantisation."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True)
class LoadedBase:
    """A base in memory. ``model`` is in eval mode and no parameter of it takes gradients."""

    model: PreTrainedModel
    folder: Path
    name: str
    revision: str
    """Commit of the hub's repository that it was made from; empty: from elsewhere."""
    fingerprint: str
    """Digest of the NF4 weights: adapters and cached prefixes belong to it."""
    dtype: torch.dtype
    """Of everything that is not NF4, and of the products."""
    device: torch.device


def resolve_device(device: str) -> torch.device:
    """``auto`` is CUDA where there is one, else the CPU. Raises FAILED_PRECONDITION if CUDA is asked for in vain."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise invalid_field("device", f"{device!r} is not a device; use auto, cpu or cuda") from error
    if chosen.type not in ("cpu", "cuda"):
        raise invalid_field("device", f"{device!r} is not supported; use auto, cpu or cuda")
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise Error(
            Code.FAILED_PRECONDITION,
            "device: cuda was asked for, but torch sees no CUDA device here; check the driver and that torch is a "
            "CUDA build, or use --device cpu",
            reason="NO_CUDA",
        )
    if chosen == torch.device("cuda"):  # no index
        chosen = torch.device("cuda", torch.cuda.current_device())
    return chosen


def resolve_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """``auto`` is bfloat16 where the device multiplies it natively; else float16 on CUDA and float32 on processors."""
    if dtype == "auto":
        if device.type == "cuda":
            # What torch emulates in float32 (before Ampere) is slow, and no attention kernel takes it.
            return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
        return torch.bfloat16 if _cpu_has_bf16() else torch.float32
    if dtype not in DTYPES:
        raise invalid_field("dtype", f"{dtype!r} is not one of auto, {', '.join(DTYPES)}")
    return DTYPES[dtype]


def resolve_training_dtype(wanted: str, dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """Type of activations in training over a base of ``dtype``: ``auto`` is bfloat16 on a GPU that computes in it.

    float32 everywhere else: float16 has no range for gradients, and processors gain little. Raises INVALID_ARGUMENT
    where bfloat16 is asked for over a base of another type.
    """
    if wanted == "auto":
        return dtype if device.type == "cuda" and dtype == torch.bfloat16 else torch.float32
    if wanted == "bfloat16" and dtype != torch.bfloat16:
        raise invalid_field(
            "training_dtype",
            f"bfloat16 needs a base that computes in bfloat16, and this one computes in {_name(dtype)};"
            " use --dtype bfloat16, or --training-dtype float32",
        )
    return DTYPES[wanted]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _cpu_has_bf16() -> bool:
    able = torch.cpu.get_capabilities()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))


def load_base(
    folder: Path | str, device: torch.device, dtype: torch.dtype, attn_implementation: str = "sdpa"
) -> LoadedBase:
    """Load an NF4 folder that :func:`.quantize.prepare_base` gave (or any bitsandbytes NF4 folder of transformers).

    NF4 weights dequantise straight to ``dtype``, to the values of dequantising to float32 and rounding once.
    Raises DATA_LOSS if the folder is broken, INVALID_ARGUMENT if it is not such a folder.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise invalid_field("model", f"{folder} has no config.json, so it is not a model folder")
    try:
        with quiet.transformers():
            model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=dtype,
                device_map={"": device},
                attn_implementation=attn_implementation,
                trust_remote_code=False,
                use_safetensors=True,
                local_files_only=True,
            )
    except ValueError as error:  # an architecture or attention that transformers refuses
        raise invalid_field("model", f"transformers cannot load {folder.name}: {error}") from error
    except (SafetensorError, OSError) as error:
        raise Error(
            Code.DATA_LOSS,
            f"the NF4 copy in {folder} is broken ({error}); delete that folder and start again to make it anew",
            reason="BASE_BROKEN",
        ) from error
    _settle(model, dtype)
    if device.type == "cuda":
        torch.cuda.synchronize(device)  # transformers' threads have copied on streams that ours does not wait for
        torch.cuda.empty_cache()  # whether weights are unpacked is decided by the memory that is free
    made = read_marker(folder)
    return LoadedBase(
        model=model,
        folder=folder,
        name=made.get("name") or folder.name,
        revision=str((made.get("source") or {}).get("commit", "")),
        fingerprint=made.get("fingerprint") or fingerprint(folder),
        dtype=dtype,
        device=device,
    )


def _settle(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Freeze; bring to ``dtype`` what the loader left in the file's; keep bitsandbytes from rewriting weights."""
    wide = set(model._keep_in_fp32_modules_strict or ())
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(False)
        if isinstance(parameter, Params4bit) or not parameter.is_floating_point():
            continue
        kept = any(part in wide for part in name.split("."))
        parameter.data = parameter.data.to(torch.float32 if kept else dtype)
    for module in model.modules():
        if isinstance(module, Linear4bit):
            # Else the first forward repacks the weight in place on AVX512-BF16, and gradients are lost.
            module.support_avx512bf16_for_cpu = False
            module.weight.quant_state.dtype = dtype
            module.compute_dtype, module.compute_type_is_set = dtype, True
    model.eval()


def weight_bytes(model: PreTrainedModel) -> tuple[int, int]:
    """Bytes of a model's weights (linear layers in NF4, the rest in 16 bits; all in 16 bits), tied ones once."""
    stored = dense = 0
    for parameter in model.parameters():  # each once, whatever its names
        is_packed = isinstance(parameter, Params4bit)
        count = math.prod(parameter.quant_state.shape) if is_packed else parameter.numel()
        stored += int(count * (nf4.BYTES if is_packed else 2))
        dense += 2 * count
    return stored, dense


def loaded_bytes(folder: Path, dtype: torch.dtype, device: torch.device) -> tuple[int, int]:
    """Memory of the weights of an NF4 folder once it is loaded: linear layers in NF4, or unpacked to ``dtype``."""
    tensors = stored_tensors(folder.glob("*.safetensors"))
    packed = unpacked = 0
    for name, tensor in tensors.items():
        if f"{name}.absmax" in tensors:
            packed += tensor.nbytes + (int(2 * tensor.nbytes * SCALE_BYTES) if device.type == "cuda" else 0)
            unpacked += 2 * tensor.nbytes * dtype.itemsize
        elif ".weight." in name:  # scales of blocks
            packed += tensor.nbytes
        else:
            packed += math.prod(tensor.shape) * dtype.itemsize
            unpacked += math.prod(tensor.shape) * dtype.itemsize
    return packed, unpacked


def linear_modules(model: PreTrainedModel) -> dict[str, tuple[int, int]]:
    """Every linear that an adapter may target, in the model's order: name -> (in_features, out_features).

    All but the output head, as PEFT's ``all-linear``.
    """
    head = model.get_output_embeddings()
    return {
        name: (module.in_features, module.out_features)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    }
