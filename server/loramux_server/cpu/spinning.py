"""Threads at a barrier spin while the processors are theirs, and sleep where other processes want these.

Spinning saves a wake-up for each small operation, but as soon as anything else runs, a thread that spins uses up the
time that the scheduler would give the one it waits for, and every barrier lasts a time slice. How long libgomp spins is
decided when it is loaded, with one exception: it hardly spins while a process has more OpenMP threads than processors.
So a second team of threads, which sleeps, is the switch. Whether others want the processors is what the kernel counts
for each thread: how long it ran, and how long it was ready to run and had to wait.
"""

from __future__ import annotations

import ctypes
import logging
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger(__name__)

PERIOD = 0.25
"""Seconds between two looks at the threads' times."""
CROWDED, FREE = 0.10, 0.05
"""Shares of the time ready to run that was spent waiting: above the first threads sleep, below the second they spin."""
WORKING = 0.5
"""Processors in use below which a period tells nothing."""
PATIENCE, MOST_PATIENCE = 1.0, 60.0
"""Seconds of free processors before threads spin again. Doubled each time this turns out to be wrong at once."""
WRONG = 5.0
"""Seconds of spinning below which the decision was wrong."""

Times = Mapping[str, tuple[int, int]]
"""Thread id -> nanoseconds it ran, nanoseconds it waited for a processor."""


def thread_times(tasks: Path = Path("/proc/self/task")) -> Times:
    """Times of this process's threads; empty where the kernel does not count them."""
    found = {}
    try:
        for task in tasks.iterdir():
            try:
                ran, waited, *_ = (task / "schedstat").read_text().split()
            except (OSError, ValueError):
                continue  # it has just ended
            found[task.name] = int(ran), int(waited)
    except OSError:
        pass
    return found


@dataclass(slots=True)
class Decision:
    """Whether threads may spin, from one period to the next. They sleep until it is known that they may."""

    spinning: bool = False
    _patience: float = PATIENCE
    _free: float = 0.0  # seconds without others, while sleeping
    _spun: float = 0.0  # seconds since spinning began

    def after(self, before: Times, now: Times, seconds: float) -> bool:
        """The decision after a period with these times at its ends."""
        pairs = [(before.get(thread, (0, 0)), times) for thread, times in now.items()]
        ran, waited = (sum(end[i] - begin[i] for begin, end in pairs) / 1e9 for i in range(2))
        share = waited / (ran + waited) if ran + waited > WORKING * seconds else None
        if self.spinning:
            self._spun += seconds
            if share is not None and share > CROWDED:
                self._patience = min(2 * self._patience, MOST_PATIENCE) if self._spun < WRONG else PATIENCE
                self.spinning, self._free = False, 0.0
        elif share is not None:
            self._free = self._free + seconds if share < FREE else 0.0
            if self._free >= self._patience:
                self.spinning, self._spun = True, 0.0
        return self.spinning


class SleepingTeam:
    """More OpenMP threads than processors, for as long as it exists: the others hardly spin at barriers then.

    ``threads``: of the team that works. Raises OSError where OpenMP is not libgomp.
    """

    def __init__(self, threads: int) -> None:
        library = ctypes.CDLL("libgomp.so.1", mode=os.RTLD_NOLOAD | os.RTLD_NOW)
        # Any function that does nothing will do: what counts is that the threads are there.
        nothing = ctypes.cast(library.omp_in_parallel, ctypes.c_void_p)
        size = max(2, library.omp_get_num_procs() - threads + 2)
        started, self._over = threading.Event(), threading.Event()

        def hold() -> None:
            library.GOMP_parallel(nothing, None, size, 0)
            started.set()
            self._over.wait()  # the team ends with the thread that began it

        self._thread = threading.Thread(target=hold, name="sleeping-team", daemon=True)
        self._thread.start()
        started.wait()

    def close(self) -> None:
        self._over.set()
        self._thread.join()


def control(threads: int) -> None:
    """Decide for this process from now on, on a thread of its own; ``threads``: of the team that works.

    Where the kernel does not count what threads waited for, they sleep.
    """
    if threads < 2:
        return
    try:
        team = SleepingTeam(threads)
    except OSError:
        log.info("OpenMP is not libgomp: how its threads wait is left to it")
        return
    if thread_times():
        threading.Thread(target=_watch, args=(threads, team), name="spinning", daemon=True).start()


def _watch(threads: int, team: SleepingTeam | None) -> None:
    decision, before, begin = Decision(), thread_times(), time.monotonic()
    while True:
        time.sleep(PERIOD)
        times, now = thread_times(), time.monotonic()
        spinning = decision.after(before, times, now - begin)
        before, begin = times, now
        if spinning and team is not None:
            team.close()
            team = None
        elif not spinning and team is None:
            team = SleepingTeam(threads)
