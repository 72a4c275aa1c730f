"""Bytes of the base in 16 bits and in NF4: of the files, and as a running server tells them."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from .results import Results
from .setting import Setting


def measure(setting: Setting, results: Results) -> None:
    """Sizes of both folders' weights, then what servers that hold the base packed and unpacked tell."""
    results.put(
        "weights",
        {
            "files": {name: file_bytes(Path(folder)) for name, folder in setting.base.items()},
            "servers": {held: asyncio.run(_told(setting, held)) for held in ("packed", "unpacked")},
        },
    )


def file_bytes(folder: Path) -> int:
    """Bytes of a folder's safetensors files."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


async def _told(setting: Setting, held: str) -> dict[str, Any]:
    flags = ("--cpu-weights", held, "--dtype", "float32", "--threads", str(setting.threads))
    async with setting.server(*flags) as client:
        info = await client.info()
        return {
            "nf4_bytes": info.weight_bytes,
            "bytes_in_16_bits": info.weight_bytes_16bit,
            "resident_base_bytes": info.memory_bytes["base"],
            "training_job_bytes": info.training_job_bytes,
        }
