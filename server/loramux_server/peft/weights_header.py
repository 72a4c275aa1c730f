"""The header of a weights file in safetensors: whether it is one, and its tensors fill the file. No tensor is read."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ..core.errors import Code, Error
from ..core.types import WEIGHTS_FILE
from ..host.files import open_regular
from .config import load_object, shown

MAX_HEADER_BYTES = 1 << 20
DTYPE_BYTES = {"F32": 4, "F16": 2, "BF16": 2}


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor of the weights file as its header tells it."""

    key: str
    dtype: str
    shape: tuple[int, int]


def read_header(folder: Path, allow_hard_links: bool) -> tuple[dict[str, Any], int]:
    """The parsed header of the weights file and the number of bytes after it."""
    try:
        fd = open_regular(folder / WEIGHTS_FILE, allow_hard_links=allow_hard_links)
    except FileNotFoundError:
        pickled = (folder / "adapter_model.bin").is_symlink() or (folder / "adapter_model.bin").exists()
        hint = "adapter_model.bin is a pickle and is never opened; " if pickled else ""
        raise Error(
            Code.INVALID_ARGUMENT,
            f"{WEIGHTS_FILE} is missing: {hint}save the adapter with safe_serialization=True",
            reason="FILE_MISSING",
        ) from None
    with os.fdopen(fd, "rb") as file:
        return parse_header(file, os.fstat(fd).st_size)


def parse_header(file: BinaryIO, size: int) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file of ``size`` bytes, and the number of bytes after it."""
    if size < 8:
        raise bad_file(f"is too short ({size} bytes) to be a safetensors file")
    length = int.from_bytes(file.read(8), "little")
    if length > MAX_HEADER_BYTES:
        raise bad_file(f"is no safetensors file, or its header is larger than {MAX_HEADER_BYTES} bytes")
    if length < 2 or 8 + length > size:
        raise bad_file("is cut off or damaged: its header does not fit its length")
    data = file.read(length)
    if data[:1] != b"{":
        raise bad_file("is no safetensors file: its header is not a JSON object")
    return load_object(data, f"the header of {WEIGHTS_FILE}"), size - 8 - length


def metadata_of(header: dict[str, Any]) -> dict[str, str]:
    """What a header says beside the tensors, taken out of it."""
    found = header.pop("__metadata__", {})
    if not isinstance(found, dict) or not all(isinstance(v, str) for v in found.values()):
        raise bad_file("has metadata that is not text")
    return dict(found)


def tensors_in(header: Mapping[str, Any], data_bytes: int) -> dict[str, TensorInfo]:
    """The tensors of a header without metadata, which fill the data exactly."""
    found = {key: _tensor(key, entry, data_bytes) for key, entry in header.items()}
    _check_layout(header, data_bytes)
    return found


def _tensor(key: str, entry: object, data_bytes: int) -> TensorInfo:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise bad_file(f"tensor {shown(key)} must have dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        raise bad_file(f"tensor {shown(key)} has dtype {shown(dtype)}; use one of {', '.join(DTYPE_BYTES)}")
    if not _naturals(shape, 2) or 0 in shape:
        raise bad_file(f"tensor {shown(key)} has shape {shown(shape)}; expected two dimensions of at least 1")
    if not _naturals(offsets, 2) or not offsets[0] <= offsets[1] <= data_bytes:
        raise bad_file(f"tensor {shown(key)} lies at {shown(offsets)}, outside the file's {data_bytes} bytes of data")
    expected = shape[0] * shape[1] * DTYPE_BYTES[dtype]
    if offsets[1] - offsets[0] != expected:
        raise bad_file(f"tensor {shown(key)} needs {expected} bytes for its shape, but has {offsets[1] - offsets[0]}")
    return TensorInfo(key, dtype, (shape[0], shape[1]))


def _naturals(found: object, count: int) -> bool:
    # The bound keeps products far inside 64 bits; bool is an int, but not a size.
    return isinstance(found, list) and len(found) == count and all(type(x) is int and 0 <= x < 1 << 40 for x in found)


def _check_layout(header: Mapping[str, Any], data_bytes: int) -> None:
    """Tensors must fill the data exactly: no gaps, no overlaps, nothing behind."""
    end = 0
    for start, stop in sorted(entry["data_offsets"] for entry in header.values()):
        if start != end:
            raise bad_file("has tensors that overlap or leave a gap")
        end = stop
    if end != data_bytes:
        raise bad_file(f"has {data_bytes - end} bytes that belong to no tensor")


def bad_file(description: str) -> Error:
    """The error for a weights file that is no adapter's."""
    return Error(Code.INVALID_ARGUMENT, f"{WEIGHTS_FILE} {description}", reason="BAD_ADAPTER_FILE")
