"""What the driver tells of a GPU that torch does not: other processes, and how busy it is."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

import torch

from ..core.backend import GpuStats

T = TypeVar("T")
log = logging.getLogger(__name__)

SERVING_PRIORITY = -1
"""Priority of streams that serve: the lowest number is the highest, and 0 is what streams have."""


@cache
def _first_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device, priority=SERVING_PRIORITY)


def serve_first(device: torch.device) -> None:
    """On a GPU: what this thread queues from now on goes before what training queues on its own stream."""
    if device.type == "cuda":
        torch.cuda.set_stream(_first_stream(device))


class Gpu:
    """One GPU by torch's name for it. Everything that NVML cannot tell here is None."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._nvml, self._handle = _open(str(torch.cuda.get_device_properties(device).uuid))

    def read(self) -> GpuStats:
        """As of now. Takes about a millisecond."""
        return GpuStats(
            allocated=torch.cuda.memory_allocated(self._device),
            reserved=torch.cuda.memory_reserved(self._device),
            other_processes=self._ask(lambda nvml, gpu: others_bytes(processes(nvml, gpu), os.getpid())),
            utilization=self._ask(lambda nvml, gpu: nvml.nvmlDeviceGetUtilizationRates(gpu).gpu / 100),
        )

    def _ask(self, question: Callable[[Any, Any], T]) -> T | None:
        if self._nvml is None:
            return None
        try:
            return question(self._nvml, self._handle)
        except self._nvml.NVMLError:  # not on this GPU, such as a part of one (MIG), or not just now
            return None


def processes(nvml: Any, gpu: Any) -> dict[int, int | None]:
    """Process id -> bytes, of all processes that compute or draw on a GPU; None where the driver does not tell."""
    found = [*nvml.nvmlDeviceGetComputeRunningProcesses(gpu), *nvml.nvmlDeviceGetGraphicsRunningProcesses(gpu)]
    return {process.pid: process.usedGpuMemory for process in found}


def others_bytes(by_process: dict[int, int | None], own: int) -> int | None:
    """What processes other than ``own`` hold; None where that cannot be told apart.

    A container may see no process, or its own under a number that it does not know.
    """
    if own not in by_process or None in by_process.values():
        return None
    return sum(size or 0 for pid, size in by_process.items() if pid != own)


def _open(uuid: str) -> tuple[Any, Any]:
    """NVML and its handle of the GPU of this UUID, whatever CUDA_VISIBLE_DEVICES calls it; None where it is missing."""
    try:
        import pynvml
    except ImportError:
        return None, None
    try:
        pynvml.nvmlInit()
        return pynvml, pynvml.nvmlDeviceGetHandleByUUID(uuid if "-" in uuid[:4] else f"GPU-{uuid}")
    except pynvml.NVMLError as error:
        log.info("NVML tells nothing of the GPU: %s", error)
        return None, None
