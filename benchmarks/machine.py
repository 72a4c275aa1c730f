"""What this machine is, and how fast it reads and multiplies."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loramux_server.host.resources import usable_cpus

from .roofline import Rates

if TYPE_CHECKING:
    import torch

PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "grpcio", "loramux")
FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8", "avx_vnni", "avx512_vnni")
READ_BYTES = 1 << 30
"""Larger than any cache that a rented processor shows."""
DEVICES = ("cpu", "cuda")


def describe() -> dict[str, Any]:
    """Processor, GPUs, memory, versions and how busy the machine is now."""
    model, flags = _processor()
    return {
        "cpu": model,
        "flags": [f for f in FLAGS if f in flags],
        "cores": usable_cpus(),
        "host_cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "load_average": [round(x, 2) for x in os.getloadavg()],
        "gpus": _gpus(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
    }


def sentence(machine: dict[str, Any]) -> str:
    """The description in one line."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    gpus = "".join(f"{name}; " for name in machine["gpus"])
    return (
        f"{gpus}{machine['cpu']}, {machine['cores']} cores ({' '.join(machine['flags']) or 'no vector flags'}), "
        f"{machine['memory_bytes'] / 2**30:.0f} GiB; load average before: "
        f"{' '.join(str(x) for x in machine['load_average'])}; Python {machine['python']}, {versions}"
    )


def measure_rates(dtype: str, threads: int, device: str, repeat: int = 5) -> Rates:
    """Best of several trials, because whatever disturbs a trial makes it slower. Takes about ten seconds."""
    import torch

    if device == "cuda":
        return _gpu_rates(getattr(torch, dtype), repeat)
    return _cpu_rates(dtype, threads, repeat)


def _gpu_rates(dtype: torch.dtype, repeat: int) -> Rates:
    """A copy of a block that no cache holds, read and written; a product of 8192 x 8192 matrices."""
    import torch

    size = 8192
    source, target = (torch.ones(READ_BYTES, dtype=torch.uint8, device="cuda") for _ in range(2))
    left, right = (torch.randn(size, size, device="cuda", dtype=dtype) for _ in range(2))

    def finished(work: Callable[[], object]) -> Callable[[], None]:
        def run() -> None:
            work()
            torch.cuda.synchronize()

        return run

    copy = _best(finished(lambda: target.copy_(source)), 10 * repeat)
    return Rates(2 * READ_BYTES / copy, 2 * size**3 / _best(finished(lambda: left @ right), 10 * repeat))


def _cpu_rates(dtype: str, threads: int, repeat: int) -> Rates:
    import torch
    from torch.nn.functional import linear

    from loramux_server.cpu.prepack import prepack

    torch.set_num_threads(threads)
    seconds = _best_read(repeat)
    products: list[float] = []
    rows = 256
    for outputs, inputs in ((2048, 1024), (4096, 1024), (1024, 4096)):
        weight = torch.randn(outputs, inputs).to(getattr(torch, dtype))
        x = torch.randn(rows, inputs).to(weight.dtype)
        packed = prepack(weight)
        ways: list[Callable[[], object]] = [lambda x=x, weight=weight: linear(x, weight)]  # type: ignore[misc]
        if packed is not None:
            ways.append(lambda x=x, packed=packed: packed(x, None))  # type: ignore[misc]
        with torch.inference_mode():
            products += [2 * rows * inputs * outputs / _best(way, 10 * repeat) for way in ways]
    return Rates(READ_BYTES / seconds, max(products))


def _best_read(repeat: int) -> float:
    import torch

    block, vector = torch.ones(READ_BYTES // 4096, 1024), torch.ones(1024)
    return min(_best(block.sum, repeat), _best(lambda: block @ vector, repeat))


def _best(work: Callable[[], object], repeat: int) -> float:
    work()
    best = float("inf")
    for _ in range(repeat):
        begin = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - begin)
    return best


def _gpus() -> list[str]:
    """Models, as NVIDIA's driver tells them."""
    found = []
    for file in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        for line in file.read_text().splitlines():
            key, _, value = line.partition(":")
            found += [value.strip()] if key == "Model" else []
    return found


def _processor() -> tuple[str, frozenset[str]]:
    fields: dict[str, str] = {}
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            fields.setdefault(key.strip(), value.strip())
    except OSError:
        pass  # not Linux
    family = (
        f" (family {fields['cpu family']}, model {fields['model']})" if {"cpu family", "model"} <= set(fields) else ""
    )
    name = fields.get("model name") or platform.processor() or platform.machine()
    return name + family, frozenset(fields.get("flags", "").split())


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "-"
