"""How much memory this host gives the process."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


def zeros(size: Sequence[int], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Zeros that on the host take no memory until they are written to, which ``torch.zeros`` does at once."""
    if device.type != "cpu" or 0 in size:
        return torch.zeros(*size, device=device, dtype=dtype)
    return torch.from_numpy(np.zeros(math.prod(size) * dtype.itemsize, np.uint8)).view(dtype).view(*size)


def upload(target: Tensor, values: Tensor) -> None:
    """Copy ``values`` from the host into ``target`` without waiting for what the device still does.

    Pinned memory of torch's own pool, which hands a block out again only when the copy from it is done.
    """
    target.copy_(values.pin_memory() if target.is_cuda else values, non_blocking=True)


def host_available() -> int:
    """Bytes that this process may still take on the host."""
    available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for line in _lines("/proc/meminfo"):
        if line.startswith("MemAvailable:"):
            available = int(line.split()[1]) * 1024
    limit, used = _cgroup("memory.max"), _cgroup("memory.current")
    return available if limit is None or used is None else max(0, min(available, limit - used))


def host_total() -> int:
    """Bytes of memory that the host, or its control group, has."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(total, _cgroup("memory.max") or total)


def _cgroup(name: str) -> int | None:
    lines = _lines(f"/sys/fs/cgroup/{name}")
    return int(lines[0]) if lines and lines[0].strip().isdigit() else None


def process_memory() -> int:
    """Resident bytes of this process."""
    fields = _lines("/proc/self/statm")
    return int(fields[0].split()[1]) * os.sysconf("SC_PAGE_SIZE") if fields else 0


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []
