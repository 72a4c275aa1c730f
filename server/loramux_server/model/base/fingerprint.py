"""One digest for a base's weights, the same however they are split over files."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path


def fingerprint(folder: Path) -> str:
    """SHA-256 over name, type, shape and bytes of every tensor in ``folder``'s safetensors, in order of name.

    Raises OSError or ValueError if a file is not whole.
    """
    tensors: dict[str, tuple[Path, int, dict[str, object], int, int]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(size))
        for name, entry in header.items():
            if name != "__metadata__":
                start, end = entry["data_offsets"]
                tensors[name] = (path, 8 + size + start, entry, start, end)
    digest = hashlib.sha256()
    for name in sorted(tensors):
        path, offset, entry, start, end = tensors[name]
        digest.update(json.dumps([name, entry["dtype"], entry["shape"]]).encode())
        left = end - start
        with path.open("rb") as file:
            file.seek(offset)
            while left:
                block = file.read(min(left, 1 << 22))
                if not block:
                    raise ValueError(f"{path} ends early")
                digest.update(block)
                left -= len(block)
    return digest.hexdigest()
