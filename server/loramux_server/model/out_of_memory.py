"""What an error means for what is done next: memory ran out, on a GPU or on the host, or the device is lost."""

from __future__ import annotations

import torch

from ..cpu.heap import give_back

_MESSAGES = ("allocate memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""Of errors without a type of their own: torch's host allocator, the driver (graphs), cuBLAS (workspaces)."""


def out_of_memory(error: BaseException) -> bool:
    """Tell memory that ran out from defects."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(message in str(error) for message in _MESSAGES)


def device_lost(error: BaseException) -> bool:
    """Whether nothing can be computed on the device any more, by anybody."""
    return isinstance(error, torch.AcceleratorError) and not out_of_memory(error)


def release_cached() -> None:
    """Give what the allocators of torch and of this process keep for later back to the device and the system."""
    torch.cuda.empty_cache()  # does nothing where CUDA is not in use
    give_back()
