"""How much memory there is, and how the KV cache and the adapters share it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from ..core.errors import Code, Error
from ..core.settings import EngineSettings
from ..host.resources import host_available, host_total
from ..model.base.load import loaded_bytes, resolve_device, resolve_dtype
from ..model.base.source import read_marker

MiB = 1 << 20
DEFAULT_ROWS = {"cpu": 512, "cuda": 1024}
"""Rank rows for adapters where memory allows: 32 adapters of rank 16 on a host, 64 on a GPU."""


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """What the budget buys."""

    kv_pages: int
    adapter_rows: int
    host_bytes: int
    """For adapters kept in host memory behind those on the device."""


def plan_memory(
    settings: EngineSettings,
    device: torch.device,
    page_bytes: int,
    row_bytes: int,
    graphs: int = 0,
    free: int | None = None,
) -> MemoryPlan:
    """Split what is free between KV pages and adapters, where the operator has not said.

    By default adapters get memory for 512 rank rows, 1,024 on a GPU, but at most a quarter of the budget, and the KV
    cache the rest. The budget is 85 % of what is free on a GPU (the rest is for activations and training) less the
    ``graphs`` bytes that CUDA graphs may take, and 2 GiB but at most a quarter of what is free on a host, whose memory
    others use too.
    ``free``: bytes to plan with; None: what is free now.
    """
    if free is None:
        if device.type == "cuda":
            torch.cuda.empty_cache()  # what loading the base, or converting it, left in torch's cache is free too
        free = device_memory(device)[0]
    budget = max(int(free * 0.85) - graphs, 0) if device.type == "cuda" else min(2048 * MiB, free // 4)
    adapters = settings.adapter_memory
    if adapters is None:
        adapters = min(DEFAULT_ROWS[device.type] * row_bytes, budget // 4)
    kv = settings.kv_cache_memory
    if kv is None:
        kv = max(budget - adapters, 0) if device.type == "cuda" else budget // 2
    pages, rows = kv // page_bytes, adapters // row_bytes
    if pages < 1:
        raise Error(
            Code.RESOURCE_EXHAUSTED,
            f"no memory for a KV cache: one page takes {page_bytes} bytes and {kv} are granted of {free} that are "
            "free beside the base; free memory, raise --kv-cache-memory, lower --adapter-memory or --max-running, or "
            "serve a smaller base",
        )
    host = settings.adapter_host_memory
    return MemoryPlan(pages, rows, min(2048 * MiB, host_available() // 8) if host is None else host)


def check_room(settings: EngineSettings, folder: Path) -> None:
    """Raise RESOURCE_EXHAUSTED, with what is needed and what helps, where a base's weights cannot be held at all.

    Looks at the headers of the NF4 files in ``folder`` alone, before anything is loaded.
    """
    device = resolve_device(settings.device)
    packed, unpacked = loaded_bytes(folder, resolve_dtype(settings.dtype, device), device)
    choice = settings.cpu_weights if device.type == "cpu" else settings.gpu_weights
    needed = unpacked if choice == "unpacked" else packed
    free, total = device_memory(device)
    if needed <= free:
        return
    name = read_marker(folder).get("name") or folder.name
    place = "this host" if device.type == "cpu" else str(device)
    way = "unpacked" if choice == "unpacked" else "in NF4"
    hints = ["serve a smaller base"]
    if needed <= total:
        hints.insert(0, "free memory")
    elif device.type == "cuda":
        hints.append("use a GPU with more memory, since a base is not spread over several")
    else:
        hints.append("use a host with more memory")
    if choice == "unpacked" and packed <= free:
        flag = "--cpu-weights" if device.type == "cpu" else "--gpu-weights"
        hints.insert(0, f"use {flag} packed, which needs {packed / 1e9:.1f} GB")
    if device.type == "cuda" and packed <= (there := host_available()):
        hints.append(f"use --device cpu, where {there / 1e9:.1f} GB are free")
    raise Error(
        Code.RESOURCE_EXHAUSTED,
        f"the weights of {name} need {needed / 1e9:.1f} GB {way}, and {place} has {free / 1e9:.1f} GB free of "
        f"{total / 1e9:.1f}: {', '.join(hints[:-1])} or {hints[-1]}",
        reason="BASE_TOO_LARGE",
    )


def device_memory(device: torch.device) -> tuple[int, int]:
    """(free, total) bytes of a GPU, or of this host within its control group's limit."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return int(free), int(total)
    return host_available(), host_total()
