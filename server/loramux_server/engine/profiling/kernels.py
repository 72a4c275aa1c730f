"""Operators and kernels as torch's profiler sees them, a short segment at a time.

What torch's profiler has seen is worked off when it stops, and the engine waits for that: so it runs for a tenth of
each second only, and no more once there are as many events as were asked for.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.autograd.profiler import profile

from ...core.observing.timeline import Event

log = logging.getLogger(__name__)

SEGMENT, PERIOD = 0.1, 1.0
"""Seconds that are recorded, of so many."""


class KernelRecorder:
    """Belongs to the thread that owns the model, which calls :meth:`turn` between two steps."""

    def __init__(self, device: torch.device, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.dropped = 0
        """Events beyond ``most``."""
        self._device, self._left, self._clock = device, most, clock
        self._found: list[Any] = []
        self._profile: Any = None
        self._begun = -PERIOD

    def turn(self) -> None:
        """Begin or end a segment where it is time to."""
        now = self._clock()
        if self._profile is not None:
            if now - self._begun >= SEGMENT:
                self._end()
        elif self._left and now - self._begun >= PERIOD:
            self._begun = now
            beginning = profile(use_device="cuda" if self._device.type == "cuda" else None)
            with self._given_up_where_it_fails():
                beginning.__enter__()
                self._profile = beginning

    def stop(self) -> Iterator[Event]:
        """End; the events are made as they are taken, which another thread may do."""
        if self._profile is not None:
            self._end()
        found, self._found, self._left = self._found, [], 0
        return map(_event, found)

    def _end(self) -> None:
        ending, self._profile = self._profile, None
        with self._given_up_where_it_fails():
            ending.__exit__(None, None, None)
            found = ending.kineto_results.events()
            self.dropped += max(len(found) - self._left, 0)
            self._found += found[: self._left]
            self._left = max(self._left - len(found), 0)

    @contextmanager
    def _given_up_where_it_fails(self) -> Iterator[None]:
        """What torch's profiler cannot do, such as trace a device that another one traces, must not end the engine."""
        try:
            yield
        except Exception:
            log.exception("a profile goes on without kernels: torch's profiler failed")
            self._left = 0


def _event(found: Any) -> Event:
    """An operator on the track of its thread, or a kernel on that of its stream."""
    on_device = found.device_type().name != "CPU"
    track = f"stream {found.device_resource_id()}" if on_device else f"operators {found.start_thread_id()}"
    return Event(found.name(), track, found.start_ns(), found.duration_ns())
