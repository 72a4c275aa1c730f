"""What the process's own memory really takes, and giving back what it does not need any more."""

from __future__ import annotations

import ctypes
import gc
import mmap

import numpy as np
from torch import Tensor

_libc = ctypes.CDLL(None, use_errno=True)


def resident_bytes(tensor: Tensor) -> int:
    """Bytes of a large tensor on the host that are in memory: zeros that nobody wrote to take none.

    All of them where the system cannot tell.
    """
    begin, end = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
    first, last = -(-begin // mmap.PAGESIZE), end // mmap.PAGESIZE
    if last <= first or not hasattr(_libc, "mincore"):
        return tensor.nbytes
    pages = (ctypes.c_ubyte * (last - first))()
    size = ctypes.c_size_t((last - first) * mmap.PAGESIZE)
    if _libc.mincore(ctypes.c_void_p(first * mmap.PAGESIZE), size, pages):
        return tensor.nbytes
    return int(np.count_nonzero(np.ctypeslib.as_array(pages) & 1)) * mmap.PAGESIZE


def give_back() -> None:
    """Return free memory to the system: glibc keeps what a training job had, for an allocation that may never come."""
    gc.collect()
    if hasattr(_libc, "malloc_trim"):
        _libc.malloc_trim(0)
