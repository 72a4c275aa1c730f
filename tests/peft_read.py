"""PEFT folders that no store has, read as the engine reads those of a store."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from loramux_server.core.types import COMPUTED_WITH, WEIGHTS_FILE
from loramux_server.lora.bank import LoraPair
from loramux_server.peft.folder import tensors_of
from loramux_server.peft.schema import AdapterConfig, check_files


def read_folder(
    folder: Path,
    modules: Mapping[str, tuple[int, int]],
    base_fingerprint: str | None = None,
    *,
    dtype: torch.dtype | None = None,
) -> tuple[AdapterConfig, dict[str, LoraPair]]:
    """What a folder says of itself, and its tensors by module."""
    files = {name: bytearray((folder / name).read_bytes()) for name in COMPUTED_WITH}
    config = check_files(files, modules, base_fingerprint)
    return config, tensors_of(files[WEIGHTS_FILE], config, dtype)
