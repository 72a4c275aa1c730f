"""What NF4 saves, as it is told: the bytes that the files have, tied weights once."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from loramux_server.model.base.fingerprint import stored_tensors
from loramux_server.model.base.load import load_base, weight_bytes


@pytest.mark.parametrize("arch", ["llama", "qwen2"])  # untied and tied
def test_they_are_those_of_the_files(arch: str, tiny_base: Callable[..., Path]) -> None:
    folder = tiny_base(arch)
    tensors = stored_tensors(folder.glob("*.safetensors"))
    packed = [name for name in tensors if f"{name}.absmax" in tensors]
    rest = sum(math.prod(t.shape) for name, t in tensors.items() if name not in packed and ".weight." not in name)
    weights = sum(2 * tensors[name].nbytes for name in packed)
    scales = sum(t.nbytes for name, t in tensors.items() if name.endswith(".absmax"))
    stored, dense = weight_bytes(load_base(folder, torch.device("cpu"), torch.float32).model)
    assert dense == 2 * (weights + rest)
    assert stored == pytest.approx(weights // 2 + scales + 2 * rest, rel=0.01)
