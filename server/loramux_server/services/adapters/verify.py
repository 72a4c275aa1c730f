"""Whether a trained adapter is worth publishing: fits the base, and changes something."""

from __future__ import annotations

import json
import os
from pathlib import Path

from ...core.backend import EngineInfo
from ...core.errors import Code, Error
from ...host.files import open_regular
from ...peft.schema import WEIGHTS_FILE, AdapterConfig, check_folder
from ..common.limits import Limits


def verify_trained(folder: Path, info: EngineInfo, limits: Limits) -> AdapterConfig:
    """Check a folder that the engine wrote; blocking. That its values are finite is checked by loading it.

    Raises INVALID_ARGUMENT or FAILED_PRECONDITION when its keys and shapes do not match the base, or when its delta
    is zero in every module: such an adapter would load, and serve the base.
    """
    config = check_folder(
        folder, info.linear_modules, info.base_fingerprint, max_rank=limits.max_rank, allow_hard_links=True
    )
    if not has_effect(folder, config):
        raise Error(
            Code.FAILED_PRECONDITION,
            "the trained adapter changes nothing: its delta is zero in every module; train for more steps or with a"
            " higher learning_rate",
            reason="ADAPTER_WITHOUT_EFFECT",
        )
    return config


def has_effect(folder: Path, config: AdapterConfig) -> bool:
    """Whether some module has an A and a B that are not all zero, seen from the bytes of a checked folder."""
    with os.fdopen(open_regular(folder / WEIGHTS_FILE), "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))

        def is_zero(key: str) -> bool:
            start, end = header[key]["data_offsets"]
            file.seek(8 + length + start)
            return not file.read(end - start).strip(b"\0")

        return any(not is_zero(module.b.key) and not is_zero(module.a.key) for module in config.modules)
