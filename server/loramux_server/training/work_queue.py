"""Where work items run, and what time they take: at once on a processor, on a stream of their own on a GPU.

On a GPU a work item returns when its kernels are queued. They run on a stream of low priority, beside the serve steps,
and events on the stream tell when they are done and how long they took.

The streams need no more order than this: what training makes it makes, uses and frees on its own stream, and what it
shares with serving are the base's weights, which are there before it begins and stay. Memory that it frees goes back
to its stream, and the allocator waits for the device before it gives any of that to another.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, TypeVar

import torch

T = TypeVar("T")

AHEAD = 2
"""Work items that may be on a device and not done: one that runs, and one so that the device does not wait for us."""


class WorkQueue(Protocol):
    """Runs work items in order."""

    @property
    def device_seconds(self) -> float | None:
        """Seconds of a device that finished work items took; None where they are done when they return."""
        ...

    def entered(self) -> AbstractContextManager[Any]:
        """All that jobs compute, copy and free happens inside."""
        ...

    def run(self, item: Callable[[], T]) -> T:
        """Run a work item, or queue what it computes on a device."""
        ...

    def ready(self, settled: bool) -> bool:
        """Whether another work item may run now; ``settled``: only when all before it are done."""
        ...

    def wait(self, settled: bool) -> None:
        """Wait until :meth:`ready`."""
        ...


class HostQueue:
    """Work items that are done when they return."""

    device_seconds: float | None = None

    def entered(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def run(self, item: Callable[[], T]) -> T:
        return item()

    def ready(self, settled: bool) -> bool:
        return True

    def wait(self, settled: bool) -> None:
        return


class Mark(Protocol):
    """A place in the order of what a device computes; ``torch.cuda.Event`` is one."""

    def record(self) -> None: ...

    def query(self) -> bool:
        """Whether the device got here."""
        ...

    def synchronize(self) -> None:
        """Wait until it does."""
        ...

    def elapsed_time(self, end: Any) -> float:
        """Milliseconds from here to ``end``, which was reached."""
        ...


class DeviceQueue:
    """Work items on a device, up to ``AHEAD`` of them not done."""

    def __init__(self, mark: Callable[[], Mark], entered: Callable[[], AbstractContextManager[Any]]) -> None:
        self._mark, self.entered = mark, entered
        self._queued: deque[tuple[Mark, Mark]] = deque()  # begin and end of each, the oldest first
        self._seconds = 0.0

    @property
    def device_seconds(self) -> float | None:
        self._note_done()
        return self._seconds

    def run(self, item: Callable[[], T]) -> T:
        begin, end = self._mark(), self._mark()
        begin.record()
        try:
            return item()
        finally:
            end.record()
            self._queued.append((begin, end))

    def ready(self, settled: bool) -> bool:
        self._note_done()
        return len(self._queued) < (1 if settled else AHEAD)

    def wait(self, settled: bool) -> None:
        while not self.ready(settled):
            self._queued[0][1].synchronize()

    def _note_done(self) -> None:
        while self._queued and self._queued[0][1].query():
            begin, end = self._queued.popleft()
            self._seconds += begin.elapsed_time(end) / 1000


def make_queue(device: torch.device) -> WorkQueue:
    """The queue of a device. What the caller's stream has queued, such as loading the base, comes before it."""
    if device.type != "cuda":
        return HostQueue()
    stream = torch.cuda.Stream(device)  # of the lowest priority
    stream.wait_stream(torch.cuda.current_stream(device))
    return DeviceQueue(lambda: torch.cuda.Event(enable_timing=True), lambda: torch.cuda.stream(stream))
