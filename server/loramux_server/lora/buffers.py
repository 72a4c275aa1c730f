"""Tensors in the host's memory, and their way to the device."""

from __future__ import annotations

import math
from collections.abc import Sequence

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


def on_device(
    values: Sequence[int] | Sequence[float] | Tensor, device: torch.device, dtype: torch.dtype | None = None
) -> Tensor:
    """``values`` of the host on the device, as ``upload`` brings them: ``torch.tensor(values, device=...)`` waits."""
    made = torch.as_tensor(values, dtype=dtype)
    return (made.pin_memory() if device.type == "cuda" else made).to(device, non_blocking=True)


class Uploads:
    """Copies from pinned memory to a device, on a stream of their own, so that they run beside a step.

    The host never waits; what is launched afterwards finds the copy done. On a processor there is nothing to copy.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def send(self, values: Tensor) -> Tensor:
        """``values`` on the device."""
        if self._stream is None:
            return values
        current = torch.cuda.current_stream(self._device)
        with torch.cuda.stream(self._stream):
            sent = values.to(self._device, non_blocking=True)
        current.wait_stream(self._stream)
        sent.record_stream(current)
        return sent
