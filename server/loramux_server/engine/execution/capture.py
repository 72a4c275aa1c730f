"""How a decode step becomes something that replays: the seam between the bookkeeping of graphs and CUDA."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import torch

from ...model.out_of_memory import out_of_memory
from ..gpu import SERVING_PRIORITY


class CaptureBroken(RuntimeError):
    """A capture broke half-way: nothing else may be captured in this process. Earlier captures go on."""


class Capture(Protocol):
    """Turns a step into its replay."""

    nbytes: int
    """Memory that torch's allocator holds for captures, so far."""

    def capture(self, step: Callable[[], object]) -> Callable[[], None]:
        """Run ``step`` and give a function that does the same again on the same tensors.

        ``step`` may be run any number of times here, and what it decides in Python is decided once. Raises
        RuntimeError when it cannot be captured, or not now because memory ran out, and :class:`CaptureBroken`.
        """
        ...


class CudaCapture:
    """CUDA graphs that share one memory pool, so replays must not overlap. For the thread that owns the model.

    A step that waits for the device cannot be captured, and a capture that breaks leaves torch's allocator in a state
    where it no longer gives cached memory back. So a run before the capture, in which torch raises at every wait,
    finds such steps first.
    """

    def __init__(self, device: torch.device) -> None:
        self.nbytes = 0
        self._device = device
        warnings.filterwarnings("ignore", "Synchronization debug mode")  # torch's note that it may miss a wait
        # Runs before a capture use its stream too: libraries keep a workspace a stream, which must exist by then.
        # Its priority becomes that of a graph's kernels.
        self._stream = torch.cuda.Stream(device, priority=SERVING_PRIORITY)
        self._pool = torch.cuda.graph_pool_handle()

    def capture(self, step: Callable[[], object]) -> Callable[[], None]:
        current = torch.cuda.current_stream(self._device)
        # Leaving this context brings the old stream back, which torch.cuda.graph alone does not when a capture breaks.
        with torch.cuda.stream(self._stream):
            self._stream.wait_stream(current)
            try:
                step()
                with _no_waiting():
                    step()
            finally:
                # Of a run that fails too: what it has queued writes to the buffers that the next replay uses.
                current.wait_stream(self._stream)
            graph = torch.cuda.CUDAGraph()
            try:
                # thread_local: the threads that read adapters' files may use CUDA as they like.
                with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"):
                    step()
            except RuntimeError as error:
                if out_of_memory(error):
                    raise  # the allocator found none, and the driver ended the capture as it should
                raise CaptureBroken(str(error)) from error
        # Of this pool alone: what is free on the device changes with other processes too.
        self.nbytes = pool_bytes(torch.cuda.memory_snapshot(), self._pool)
        return graph.replay


def pool_bytes(segments: Iterable[Mapping[str, Any]], pool: tuple[int, int]) -> int:
    """Bytes of the segments, as ``torch.cuda.memory_snapshot`` lists them, that a private pool has."""
    return sum(int(segment["total_size"]) for segment in segments if tuple(segment["segment_pool_id"]) == tuple(pool))


@contextmanager
def _no_waiting() -> Iterator[None]:
    """In here torch raises RuntimeError where the host would wait for the device."""
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(mode)
