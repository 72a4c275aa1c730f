"""Whether a folder is a LoRA adapter for our base, found from its names and headers alone: no torch, no tensor read.

The front checks uploads with this before anything is stored; the engine checks again before it reads tensors.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..core.errors import Code, Error
from ..core.types import WEIGHTS_FILE as WEIGHTS_FILE
from ..host.files import read_regular
from .config import CONFIG_FILE, MAX_CONFIG_BYTES, parse_config, shown
from .foreign import other_prefix, tool_of, without_wrappers
from .lora_config import ALL_LINEAR, LoraConfig
from .weights_header import (
    MAX_HEADER_BYTES,
    TensorInfo,
    bad_file,
    metadata_of,
    parse_header,
    read_header,
    tensors_in,
)

CARD_FILE = "README.md"
FINGERPRINT_KEY = "loramux.base_fingerprint"
"""Key of the weights file's metadata that names the base the adapter was trained on."""

_PREFIX = "base_model.model."
_ENDINGS = {
    ".lora_A.weight": "A",
    ".lora_B.weight": "B",
    ".lora_A.default.weight": "A",
    ".lora_B.default.weight": "B",
}


@dataclass(frozen=True, slots=True)
class ModuleEntry:
    """One adapted module: delta = scaling * B @ A, A [rank, in], B [out, rank]."""

    name: str
    rank: int
    scaling: float
    a: TensorInfo
    b: TensorInfo


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """A checked adapter folder: its settings and every module that it adapts, in order of name."""

    lora: LoraConfig
    modules: tuple[ModuleEntry, ...]
    size_bytes: int
    """Bytes of the tensors."""
    metadata: dict[str, str] = field(default_factory=dict)
    """What the weights file's header says beside the tensors."""

    @property
    def rank(self) -> int:
        """The largest rank of any module: what the adapter takes in memory and time."""
        return max(m.rank for m in self.modules)

    @property
    def alpha(self) -> float:
        return self.lora.alpha

    @property
    def target_modules(self) -> tuple[str, ...]:
        """Last parts of the adapted modules' names, sorted: ``q_proj``, ``v_proj``."""
        return tuple(sorted({m.name.rpartition(".")[2] for m in self.modules}))

    @property
    def layers(self) -> tuple[int, ...] | None:
        return self.lora.layers


def check_folder(
    path: Path | str,
    modules: Mapping[str, tuple[int, int]],
    base_fingerprint: str | None = None,
    *,
    max_rank: int = 256,
    allow_hard_links: bool = False,
) -> AdapterConfig:
    """Check a PEFT folder against the base's linears (name -> (in_features, out_features)).

    Only ``adapter_config.json`` and ``adapter_model.safetensors`` are opened. Raises INVALID_ARGUMENT naming the
    field or tensor, or FAILED_PRECONDITION (reason ADAPTER_FOR_OTHER_BASE) when the adapter fits another base.
    ``allow_hard_links`` is for folders that are the server's own.
    """
    folder = Path(path)
    lora = parse_config(_read_config(folder, allow_hard_links), max_rank=max_rank)
    header, data_bytes = read_header(folder, allow_hard_links)
    return _check(lora, header, data_bytes, modules, base_fingerprint, max_rank)


def check_files(
    files: Mapping[str, bytearray],
    modules: Mapping[str, tuple[int, int]],
    base_fingerprint: str | None = None,
    *,
    max_rank: int = 256,
) -> AdapterConfig:
    """``check_folder`` for the files that a ``BlobReader`` gave."""
    lora = parse_config(bytes(files[CONFIG_FILE]), max_rank=max_rank)
    weights = files[WEIGHTS_FILE]
    # Only the head is copied.
    header, data_bytes = parse_header(io.BytesIO(weights[: 8 + MAX_HEADER_BYTES]), len(weights))
    return _check(lora, header, data_bytes, modules, base_fingerprint, max_rank)


def _check(
    lora: LoraConfig,
    header: dict[str, Any],
    data_bytes: int,
    modules: Mapping[str, tuple[int, int]],
    base_fingerprint: str | None,
    max_rank: int,
) -> AdapterConfig:
    metadata = metadata_of(header)
    _check_fingerprint(metadata, base_fingerprint)
    if not header:
        raise bad_file("holds no tensors")
    if tool := tool_of(header):
        raise bad_file(f"cannot be served: {tool}")
    if len(header) > 4 * len(modules):
        raise bad_file(
            f"holds {len(header)} tensors, more than {4 * len(modules)} for a base of {len(modules)} modules"
        )
    tensors = tensors_in(header, data_bytes)
    pairs = _pair_up(tensors, modules)
    lora = lora.as_found({name: pair["A"].shape[0] for name, pair in pairs.items()})
    names = sorted(pairs)
    entries = tuple(
        ModuleEntry(name, rank, scaling, pairs[name]["A"], pairs[name]["B"])
        for name, (rank, scaling) in zip(names, lora.scales(names), strict=True)
    )
    if (rank := max(entry.rank for entry in entries)) > max_rank:
        raise bad_file(f"has a module of rank {rank}; at most {max_rank} is allowed")
    _check_fit(entries, modules)
    _check_targets(entries, lora, modules)
    return AdapterConfig(lora, entries, data_bytes, metadata)


def _read_config(folder: Path, allow_hard_links: bool) -> bytes:
    try:
        return read_regular(folder / CONFIG_FILE, max_bytes=MAX_CONFIG_BYTES, allow_hard_links=allow_hard_links)
    except (FileNotFoundError, NotADirectoryError):
        raise Error(
            Code.INVALID_ARGUMENT, f"{CONFIG_FILE} is missing: give a folder in PEFT's format", reason="FILE_MISSING"
        ) from None


def _pair_up(
    tensors: Mapping[str, TensorInfo], modules: Mapping[str, tuple[int, int]]
) -> dict[str, dict[str, TensorInfo]]:
    """Module -> its tensors ``A`` and ``B``."""
    found: dict[str, dict[str, TensorInfo]] = {}
    unknown: list[str] = []
    for key, tensor in tensors.items():
        name, half = _split(key)
        pair = found.setdefault(name, {})
        if half in pair:
            raise bad_file(f"module {name} has its lora_{half} twice")
        pair[half] = tensor
        if name not in modules:
            unknown.append(name)
    if unknown and (differs := other_prefix(unknown, modules)):
        raise _other_base(differs)
    if unknown and len(set(unknown)) == len(found):
        raise _other_base(f"none of its modules is in the base, for example {shown(unknown[0])}")
    if unknown:
        raise bad_file(f"module {shown(unknown[0])} is not a linear layer of the base that adapters may target")
    for name, pair in found.items():
        if len(pair) != 2:
            raise bad_file(f"module {name} has no lora_{'B' if 'A' in pair else 'A'}")
    return found


def _split(key: str) -> tuple[str, str]:
    """``base_model.model.<module>.lora_A.weight`` -> (module, ``A``)."""
    for ending, half in _ENDINGS.items():
        if key.endswith(ending) and key.startswith(_PREFIX):
            return without_wrappers(key[len(_PREFIX) : -len(ending)]), half
    if "lora_embedding_" in key:
        raise bad_file(f"tensor {shown(key)} adapts an embedding; only linear layers can be adapted")
    if "lora_" not in key:
        raise bad_file(
            f"tensor {shown(key)} is a full weight (modules_to_save or resized embeddings), not part of LoRA"
        )
    hint = "" if key.startswith(_PREFIX) else f"; it lacks the {_PREFIX} that PEFT's save_pretrained writes before it"
    raise bad_file(f"tensor {shown(key)} has no name of the form {_PREFIX}<module>.lora_A.weight{hint}")


def _check_fit(entries: tuple[ModuleEntry, ...], modules: Mapping[str, tuple[int, int]]) -> None:
    wrong: list[str] = []
    misfits = 0
    for entry in entries:
        fan_in, fan_out = modules[entry.name]
        misfits += entry.a.shape[1] != fan_in or entry.b.shape[0] != fan_out
        for tensor, expected in ((entry.a, (entry.rank, fan_in)), (entry.b, (fan_out, entry.rank))):
            if tensor.shape != expected:
                wrong.append(f"tensor {tensor.key} has shape {list(tensor.shape)}, expected {list(expected)}")
    # One odd module is a damaged adapter; all of them mean that it was made for a base of another size.
    if misfits == len(entries) > 1:
        raise _other_base(wrong[0])
    if wrong:
        raise bad_file(wrong[0])


def _check_targets(entries: tuple[ModuleEntry, ...], lora: LoraConfig, modules: Mapping[str, tuple[int, int]]) -> None:
    """The weights and the config must speak of the same modules, or other programs would load another adapter."""
    expected, present = set(lora.targets(list(modules))), {e.name for e in entries}
    if extra := sorted(present - expected):
        raise bad_file(f"holds module {extra[0]}, which target_modules and layers_to_transform do not name")
    if lora.target_modules != (ALL_LINEAR,) and (missing := sorted(expected - present)):
        raise bad_file(f"holds no tensors for module {missing[0]}, which target_modules names")


def _check_fingerprint(metadata: Mapping[str, str], base_fingerprint: str | None) -> None:
    made_for = metadata.get(FINGERPRINT_KEY)
    if base_fingerprint and made_for and made_for != base_fingerprint:
        raise _other_base(f"it was trained on base {shown(made_for)}, this server has {shown(base_fingerprint)}")


def _other_base(description: str) -> Error:
    return Error(
        Code.FAILED_PRECONDITION,
        f"the adapter was made for another base: {description}",
        reason="ADAPTER_FOR_OTHER_BASE",
    )
