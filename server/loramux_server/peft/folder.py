"""PEFT folders in and out: tensors of a checked folder, and the folder of a trained adapter."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from ..core.errors import Code, Error
from ..core.types import AdapterVersion
from ..host.files import storage_errors, sync_folder, write_durable
from ..lora.bank import LoraPair
from ..store.blobs.reader import BlobReader
from .config import CONFIG_FILE
from .lora_config import ALL_LINEAR, LoraConfig
from .schema import (
    CARD_FILE,
    FINGERPRINT_KEY,
    WEIGHTS_FILE,
    AdapterConfig,
    check_files,
)
from .weights_header import TensorInfo

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Types of stored values, by their names in a file's header."""


def read_adapter(
    blobs: BlobReader,
    version: AdapterVersion,
    modules: Mapping[str, tuple[int, int]],
    base_fingerprint: str | None,
    *,
    max_rank: int = 256,
    dtype: torch.dtype | None = None,
) -> dict[str, LoraPair]:
    """As :func:`read_content`, with errors that name the version."""
    try:
        return read_content(blobs, version.digest, modules, base_fingerprint, max_rank=max_rank, dtype=dtype)
    except Error as error:
        raise naming(version, error) from error


def read_content(
    blobs: BlobReader,
    digest: str,
    modules: Mapping[str, tuple[int, int]],
    base_fingerprint: str | None,
    *,
    max_rank: int = 256,
    dtype: torch.dtype | None = None,
) -> dict[str, LoraPair]:
    """The tensors of a stored adapter: module name -> A [r, in], B [out, r] and scaling, on the host.

    Raises as :meth:`BlobReader.read`, :func:`check_files` and :func:`tensors_of`.
    """
    files = blobs.read(digest)
    config = check_files(files, modules, base_fingerprint, max_rank=max_rank)
    return tensors_of(files[WEIGHTS_FILE], config, dtype)


def naming(version: AdapterVersion, error: Error) -> Error:
    """An error about a version's content, for one who calls the version so."""
    return Error(error.code, f"adapter {version.ref}: {error.message}", reason=error.reason)


def tensors_of(data: bytearray, config: AdapterConfig, dtype: torch.dtype | None = None) -> dict[str, LoraPair]:
    """The tensors in the weights that ``check_files`` passed, in ``dtype`` or as stored (float16 becomes float32).

    Raises INVALID_ARGUMENT naming the tensor for a value that is not finite, in the file or after the cast.
    """
    tensors = _views(data, config, dtype)
    if tensors is not None:
        return {m.name: LoraPair(tensors[m.a.key], tensors[m.b.key], m.scaling) for m in config.modules}
    try:
        tensors = load_safetensors(bytes(data))
    except safetensors.SafetensorError as exc:
        raise _changed(str(exc)) from exc
    return {m.name: LoraPair(_take(tensors, m.a, dtype), _take(tensors, m.b, dtype), m.scaling) for m in config.modules}


def write_folder(
    path: Path | str,
    pairs: Mapping[str, LoraPair],
    *,
    rank: int,
    alpha: float,
    rslora: bool = False,
    target_modules: Sequence[str] = (ALL_LINEAR,),
    layers: Sequence[int] | None = None,
    base_name: str = "",
    base_fingerprint: str = "",
    dropout: float = 0.0,
    dtype: torch.dtype | None = None,
    card: str = "",
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a new folder that PEFT loads, its files and itself on disk when this returns.

    ``pairs`` maps module names to A [r, in], B [out, r] and scaling. A pair whose rank or scaling is not that of
    ``rank`` and ``alpha`` gets its line in ``rank_pattern`` and ``alpha_pattern``. Tensors are stored in ``dtype``
    or as they are. Raises INVALID_ARGUMENT naming the tensor for a value that is not finite, RESOURCE_EXHAUSTED
    when the disk is full, ``ValueError`` when targets and pairs disagree.
    """
    config = _config_of(pairs, rank, alpha, rslora, target_modules, layers, base_name)
    tensors: dict[str, Tensor] = {}
    for name, pair in pairs.items():
        for half, tensor in (("A", pair.a), ("B", pair.b)):
            key = f"base_model.model.{name}.lora_{half}.weight"
            tensors[key] = _finite(key, tensor.detach().to(device="cpu", dtype=dtype)).contiguous()
    header = {"format": "pt", **({FINGERPRINT_KEY: base_fingerprint} if base_fingerprint else {}), **(metadata or {})}
    folder = Path(path)
    with storage_errors("cannot write the adapter"):
        folder.mkdir(parents=True)
        write_durable(folder / WEIGHTS_FILE, save_safetensors(tensors, metadata=header))
        write_durable(folder / CONFIG_FILE, _config_bytes(config, dropout))
        if card:
            write_durable(folder / CARD_FILE, card.encode())
        sync_folder(folder)
        sync_folder(folder.parent)


def _config_of(
    pairs: Mapping[str, LoraPair],
    rank: int,
    alpha: float,
    rslora: bool,
    target_modules: Sequence[str],
    layers: Sequence[int] | None,
    base_name: str,
) -> LoraConfig:
    if not pairs:
        raise ValueError("an adapter needs at least one module")
    if tuple(target_modules) == (ALL_LINEAR,):
        # Names, because other programs understand "all-linear" each in its own way.
        target_modules = sorted({name.rpartition(".")[2] for name in pairs})
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    for name, pair in pairs.items():
        r = int(pair.a.shape[0])
        own_alpha = pair.scaling * (math.sqrt(r) if rslora else r)
        if r != rank:
            ranks[name] = r
        if not math.isclose(own_alpha, alpha, rel_tol=1e-6):
            alphas[name] = own_alpha
    config = LoraConfig(
        rank=rank,
        alpha=alpha,
        rslora=rslora,
        target_modules=tuple(target_modules),
        layers=None if layers is None else tuple(sorted(set(layers))),
        rank_pattern=tuple(ranks.items()),
        alpha_pattern=tuple(alphas.items()),
        base_name=base_name,
    )
    if untold := pairs.keys() - set(config.targets(list(pairs))):
        raise ValueError(f"target_modules and layers do not name {min(untold)}")
    return config


def _config_bytes(config: LoraConfig, dropout: float) -> bytes:
    whole = float(config.alpha).is_integer()
    found: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": config.base_name or None,
        "inference_mode": True,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "r": config.rank,
        "lora_alpha": int(config.alpha) if whole else config.alpha,
        "lora_dropout": dropout,
        "use_rslora": config.rslora,
        "use_dora": False,
        "target_modules": list(config.target_modules),
        "layers_to_transform": None if config.layers is None else list(config.layers),
        "layers_pattern": None,
        "rank_pattern": dict(config.rank_pattern),
        "alpha_pattern": dict(config.alpha_pattern),
        "modules_to_save": None,
    }
    return (json.dumps(found, indent=2, sort_keys=True) + "\n").encode()


def _views(data: bytearray, config: AdapterConfig, dtype: torch.dtype | None) -> dict[str, Tensor] | None:
    """All tensors as parts of one, cast and checked at once: faster than one after the other.

    None for a file that is not of one type, not as expected, or has a value that is not finite: the slower way tells.
    """
    expected = [info for m in config.modules for info in (m.a, m.b)]
    stored = DTYPES.get(expected[0].dtype)
    start = 8 + int.from_bytes(data[:8], "little")
    if stored is None or start >= len(data) or any(i % stored.itemsize for i in (start, len(data))):
        return None
    size, values = stored.itemsize, (len(data) - start) // stored.itemsize
    try:
        header = json.loads(data[8:start])
        parts: list[tuple[TensorInfo, int, int]] = []
        for info in expected:
            entry = header[info.key]
            begin, end = (int(offset) // size for offset in entry["data_offsets"])
            same = entry["dtype"] == expected[0].dtype and tuple(entry["shape"]) == info.shape
            if not same or not 0 <= begin <= end <= values or end - begin != math.prod(info.shape):
                return None
            parts.append((info, begin, end))
    except (ValueError, KeyError, TypeError):
        return None
    flat = torch.frombuffer(data, dtype=stored, offset=start)
    if dtype is not None or stored == torch.float16:
        flat = flat.to(dtype or torch.float32)
    if not all(math.isfinite(extreme) for extreme in torch.aminmax(flat)):
        return None
    return {info.key: flat[begin:end].view(info.shape) for info, begin, end in parts}


def _take(tensors: Mapping[str, Tensor], expected: TensorInfo, dtype: torch.dtype | None) -> Tensor:
    tensor = tensors.get(expected.key)
    if tensor is None or tuple(tensor.shape) != expected.shape:
        raise _changed(f"tensor {expected.key} is gone or has another shape")
    if dtype is None and tensor.dtype == torch.float16:
        dtype = torch.float32
    cast = _finite(expected.key, tensor) if dtype is None else _finite(expected.key, tensor.to(dtype))
    return cast.contiguous()


def _finite(key: str, tensor: Tensor) -> Tensor:
    # The extremes tell: aminmax passes NaN on. One pass without a temporary, six times as fast as isfinite().all().
    if not all(math.isfinite(extreme) for extreme in torch.aminmax(tensor)):
        raise Error(
            Code.INVALID_ARGUMENT,
            f"tensor {key} has values that are not finite (or too large for {tensor.dtype})",
            reason="NOT_FINITE",
        )
    return tensor


def _changed(detail: str) -> Error:
    return Error(
        Code.DATA_LOSS, f"the adapter's files changed after they were checked: {detail}", reason="ADAPTER_CHANGED"
    )
