"""Copies of many tensors in one buffer of the host, without waiting for the device."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ...model.out_of_memory import out_of_memory

ALIGNMENT = 64
"""Bytes, of the place of each tensor in the buffer."""


def copy_to_host(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], torch.cuda.Event | None]:
    """Copies by name, all views of one buffer, and the event after which they may be read (None: at once).

    The buffer is pinned where tensors come from a GPU: their copies are queued on the current stream, so what it
    computes later changes none of them, and the caller goes on meanwhile.
    """
    starts, size = {}, 0
    for name, tensor in tensors.items():
        starts[name] = size
        size += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
    on_device = [tensor.device for tensor in tensors.values() if tensor.is_cuda]
    buffer = _buffer(size, pinned=bool(on_device))
    copies: dict[str, Tensor] = {}
    with torch.no_grad():
        for name, tensor in tensors.items():
            place = buffer[starts[name] : starts[name] + tensor.nbytes]
            copies[name] = place.view(tensor.dtype).view(tensor.shape).copy_(tensor, non_blocking=True)
    if not on_device:
        return copies, None
    copied = torch.cuda.Event()
    copied.record(torch.cuda.current_stream(on_device[0]))
    return copies, copied


def _buffer(size: int, *, pinned: bool) -> Tensor:
    """Bytes on the host; unpinned where so much cannot be pinned."""
    if pinned:
        try:
            return torch.empty(size, dtype=torch.uint8, pin_memory=True)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
    return torch.empty(size, dtype=torch.uint8)
