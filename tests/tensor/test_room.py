"""A base that does not fit is refused before it is loaded, with what is needed and what helps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from loramux_server.core.errors import Code, Error
from loramux_server.core.settings import EngineSettings, Weights
from loramux_server.engine import memory
from loramux_server.engine.memory import check_room, plan_memory
from loramux_server.model.base.load import load_base, loaded_bytes

GB = 10**9
CPU = torch.device("cpu")


@pytest.mark.parametrize("arch", ["llama", "qwen2"])  # untied and tied
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_is_asked_for_is_what_loading_takes(arch: str, dtype: torch.dtype, tiny_base: Callable[..., Path]) -> None:
    folder = tiny_base(arch)
    packed, unpacked = loaded_bytes(folder, dtype, CPU)
    model = load_base(folder, CPU, dtype).model
    dense = sum(p.nbytes for p in model.parameters() if p.dtype != torch.uint8)
    assert unpacked == dense + sum(2 * p.nbytes * dtype.itemsize for p in model.parameters() if p.dtype == torch.uint8)
    scales = packed - dense - sum(p.nbytes for p in model.parameters() if p.dtype == torch.uint8)
    assert 0 < scales < packed / 4  # tables of codes besides, which are nothing beside real weights
    weights = sum(2 * p.nbytes for p in model.parameters() if p.dtype == torch.uint8)
    assert loaded_bytes(folder, dtype, torch.device("cuda"))[0] == packed + weights // 16


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """A base of 40 GB in NF4 and 141 GB unpacked."""
    monkeypatch.setattr(memory, "loaded_bytes", lambda *_: (40 * GB, 141 * GB))


@pytest.mark.parametrize(
    ("weights", "free", "said"),
    [
        ("auto", 40 * GB, None),
        (
            "packed",
            39 * GB,
            "need 40.0 GB in NF4, and this host has 39.0 GB free of 64.0: free memory or serve a smaller",
        ),
        (
            "unpacked",
            100 * GB,
            r"141.0 GB unpacked, .*: use --cpu-weights packed, which needs 40.0 GB, serve a",
        ),
        ("unpacked", 30 * GB, r"141.0 GB unpacked, .*of 64.0: serve a smaller base or use a host with more"),
    ],
)
def test_the_message_says_what_is_needed_and_which_flag_helps(
    weights: Weights, free: int, said: str | None, large: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "device_memory", lambda device: (free, 64 * GB))
    settings = EngineSettings(device="cpu", cpu_weights=weights)
    if said is None:
        check_room(settings, tmp_path)
        return
    with pytest.raises(Error, match=said) as caught:
        check_room(settings, tmp_path)
    assert (caught.value.code, caught.value.reason) == (Code.RESOURCE_EXHAUSTED, "BASE_TOO_LARGE")


def test_a_host_that_has_room_is_named_beside_a_gpu_that_has_none(
    large: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "resolve_device", lambda name: torch.device("cuda:0"))
    monkeypatch.setattr(memory, "resolve_dtype", lambda name, device: torch.bfloat16)
    monkeypatch.setattr(memory, "device_memory", lambda device: (22 * GB, 24 * GB))
    monkeypatch.setattr(memory, "host_available", lambda: 96 * GB)
    with pytest.raises(
        Error,
        match=r"cuda:0 has 22\.0 GB free of 24\.0: .* a GPU with more .* or use --device cpu, where 96\.0 GB",
    ):
        check_room(EngineSettings(), tmp_path)


def test_no_room_for_keys_and_values_says_which_flags_help() -> None:
    with pytest.raises(Error, match=r"--kv-cache-memory, lower --adapter-memory or --max-running"):
        plan_memory(EngineSettings(), torch.device("cuda"), 1 << 20, 1 << 10, free=1 << 19)
