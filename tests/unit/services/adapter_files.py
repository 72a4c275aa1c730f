"""PEFT folders for the tests' base, made without torch."""

from __future__ import annotations

import json
import struct
from pathlib import Path

from loramux_server.core.backend import EngineInfo

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"


def config_bytes(rank: int = 2, targets: tuple[str, ...] = ("q_proj",), **more: object) -> bytes:
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "somewhere/base",
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": list(targets),
        **more,
    }
    return json.dumps(config).encode()


def weights_bytes(
    info: EngineInfo,
    rank: int = 2,
    targets: tuple[str, ...] = ("q_proj",),
    *,
    b: float = 0.5,
    fingerprint: str = "",
) -> bytes:
    """F32 tensors; every B is filled with ``b``."""
    header: dict[str, object] = {"__metadata__": {"loramux.base_fingerprint": fingerprint} if fingerprint else {}}
    data = bytearray()
    for name, (fan_in, fan_out) in info.linear_modules.items():
        if name.rpartition(".")[2] not in targets:
            continue
        for half, shape, value in (("A", (rank, fan_in), 0.25), ("B", (fan_out, rank), b)):
            start = len(data)
            data += struct.pack("<f", value) * (shape[0] * shape[1])
            header[f"base_model.model.{name}.lora_{half}.weight"] = {
                "dtype": "F32",
                "shape": list(shape),
                "data_offsets": [start, len(data)],
            }
    encoded = json.dumps(header).encode()
    return struct.pack("<Q", len(encoded)) + encoded + bytes(data)


def write_adapter(folder: Path, info: EngineInfo, **weights: object) -> Path:
    folder.mkdir(parents=True)
    (folder / CONFIG).write_bytes(config_bytes())
    (folder / WEIGHTS).write_bytes(weights_bytes(info, **weights))  # type: ignore[arg-type]
    return folder
