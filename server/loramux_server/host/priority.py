"""The processor's time for work beside the engine."""

from __future__ import annotations

import os
import time
from pathlib import Path

from ..core.watch import Watch
from .resources import usable_cpus

NICENESS = 10
SHARE = 0.3
"""Part of the time that such work takes while others compute: that of training beside requests, by default."""
STRETCH = 0.005
"""Seconds of work between two looks at the others: far less than a serve step takes."""
LONGEST_PAUSE = 0.1
"""Seconds."""


def give_way() -> None:
    """Take a small share of the processor while others want it, in long slices. Children and threads inherit it."""
    os.nice(NICENESS)
    if hasattr(os, "SCHED_BATCH"):
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


class Pacer(Watch):
    """Pauses work on many rows while others compute.

    Priority is not enough: two threads of one core, and all cores of a processor, share caches, memory and clock.
    """

    def __init__(self, cpus: int | None = None, loadavg: Path = Path("/proc/loadavg")) -> None:
        super().__init__()
        self._most = max(1, (cpus or usable_cpus()) // 2)
        self._loadavg = loadavg
        self._since = time.perf_counter()

    def __call__(self) -> None:
        """Pause when it is time to."""
        super().__call__()
        worked = time.perf_counter() - self._since
        if worked < STRETCH:
            return
        if self._crowded():
            time.sleep(min(LONGEST_PAUSE, worked * (1 / SHARE - 1)))
        self._since = time.perf_counter()

    def _crowded(self) -> bool:
        """Whether more threads want to run, this one among them, than half of the processors; False: unknown."""
        try:
            return int(self._loadavg.read_text().split()[3].partition("/")[0]) > self._most
        except (OSError, ValueError, IndexError):
            return False
