"""One digest for a base's weights, the same however they are split over files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where a safetensors file has a tensor, and of which kind."""

    path: Path
    offset: int
    nbytes: int
    dtype: str
    shape: list[int]


def stored_tensors(paths: Iterable[Path]) -> dict[str, StoredTensor]:
    """What the headers of safetensors files say, by name. Raises OSError or ValueError if one cannot be read."""
    found = {}
    for path in paths:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size))
        for name, entry in header.items():
            if name != "__metadata__":
                start, end = entry["data_offsets"]
                found[name] = StoredTensor(path, 8 + size + start, end - start, entry["dtype"], entry["shape"])
    return found


def fingerprint(folder: Path) -> str:
    """SHA-256 over name, type, shape and bytes of every tensor in ``folder``'s safetensors, in order of name.

    Raises OSError or ValueError if a file is not whole.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(stored_tensors(sorted(folder.glob("*.safetensors"))).items()):
        digest.update(json.dumps([name, tensor.dtype, tensor.shape]).encode())
        left = tensor.nbytes
        with tensor.path.open("rb") as file:
            file.seek(tensor.offset)
            while left:
                block = file.read(min(left, 1 << 22))
                if not block:
                    raise ValueError(f"{tensor.path} ends early")
                digest.update(block)
                left -= len(block)
    return digest.hexdigest()
