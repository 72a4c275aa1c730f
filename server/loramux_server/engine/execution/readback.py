"""What the device computed, on its way to the host."""

from __future__ import annotations

import torch
from torch import Tensor


class Readback:
    """The values of a tensor on their way to the host, which waits for them only in :meth:`wait`."""

    def __init__(self, values: Tensor) -> None:
        self._host, self._done = values, None
        if values.is_cuda:
            self._host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._host.copy_(values, non_blocking=True)
            self._done = torch.cuda.Event()
            self._done.record(torch.cuda.current_stream(values.device))

    def wait(self) -> Tensor:
        """The values in host memory."""
        if self._done is not None:
            self._done.synchronize()
        return self._host
