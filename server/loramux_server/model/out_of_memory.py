"""Whether an error means that memory ran out, on a GPU or on the host."""

from __future__ import annotations

import torch


def out_of_memory(error: BaseException) -> bool:
    """Tell memory that ran out from defects; the host allocator of torch has no error type of its own for it."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "allocate memory" in str(error)
