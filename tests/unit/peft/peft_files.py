"""Builds adapter folders byte by byte, so that tests can damage any part of them. No torch."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

Q = "model.layers.0.self_attn.q_proj"
V = "model.layers.1.self_attn.v_proj"
MODULES = {
    f"model.layers.{i}.self_attn.{leaf}": shape
    for i in range(2)
    for leaf, shape in (("q_proj", (8, 8)), ("v_proj", (8, 4)))
}
BYTES = {"F32": 4, "F16": 2, "BF16": 2, "F64": 8, "I32": 4, "F8_E4M3": 1}


def config(**changes: Any) -> dict[str, Any]:
    """A plain config of rank 2; a value of ... leaves the key out."""
    found = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": 2,
        "lora_alpha": 4,
        "target_modules": ["q_proj", "v_proj"],
        **changes,
    }
    return {k: v for k, v in found.items() if v is not ...}


def shapes(modules: dict[str, tuple[int, int]] = MODULES, rank: int = 2) -> dict[str, list[int]]:
    """Tensor key -> shape for every module."""
    found = {}
    for name, (fan_in, fan_out) in modules.items():
        found[f"base_model.model.{name}.lora_A.weight"] = [rank, fan_in]
        found[f"base_model.model.{name}.lora_B.weight"] = [fan_out, rank]
    return found


def header(tensors: dict[str, list[int]], dtype: str = "F32") -> dict[str, Any]:
    """A header in which the tensors follow each other."""
    found: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for key, shape in tensors.items():
        size = shape[0] * shape[1] * BYTES[dtype]
        found[key] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    return found


def pack(head: Any, data: bytes | None = None) -> bytes:
    """A safetensors file; zeros for data unless given."""
    if data is None:
        entries = [] if isinstance(head, bytes) else [v for v in head.values() if isinstance(v, dict)]
        data = bytes(max((e["data_offsets"][1] for e in entries if "data_offsets" in e), default=0))
    text = head if isinstance(head, bytes) else json.dumps(head).encode()
    return struct.pack("<Q", len(text)) + text + data


def make(folder: Path, conf: Any = None, weights: bytes | None = None) -> Path:
    """Write a folder: a good one, unless told otherwise."""
    folder.mkdir(parents=True, exist_ok=True)
    conf = config() if conf is None else conf
    text = conf if isinstance(conf, bytes) else json.dumps(conf).encode()
    (folder / "adapter_config.json").write_bytes(text)
    (folder / "adapter_model.safetensors").write_bytes(pack(header(shapes())) if weights is None else weights)
    return folder
