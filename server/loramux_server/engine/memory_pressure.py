"""What is given up when memory runs out, in which order, and how it comes back.

What training holds goes first: the activations of the micro-batch under way, which is computed again later, then whole
jobs, one by one, that go on from their checkpoints. After each the computation is tried again. Where that does not
help, steps are halved. After ``CALM`` seconds without another error the limits of steps double, and again, up to what
was configured; at last suspended jobs go on. An error soon after something came back doubles that time.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import TypeVar

from ..model.out_of_memory import out_of_memory, release_cached
from .scheduling.scheduler import Scheduler
from .training_share import TrainingShare

log = logging.getLogger(__name__)

T = TypeVar("T")

CALM, LONGEST = 10.0, 640.0
"""Seconds without an error after which something comes back: at first, and at most."""


class MemoryPressure:
    """Runs computations that may find no memory, and keeps what is given up for them.

    Belongs to the loop's thread. ``counts``: see ``EngineStats.out_of_memory``.
    """

    def __init__(
        self, scheduler: Scheduler, training: TrainingShare, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.counts = Counter(errors=0, micro_batches=0, jobs=0, steps=0)
        self._scheduler, self._training, self._clock = scheduler, training, clock
        self._wait = CALM
        self._due: float | None = None  # when something comes back; None: nothing is given up
        self._returned: float | None = None  # when something came back, if there was no error since

    def attempt(self, compute: Callable[[], T]) -> T | None:
        """What ``compute`` gives, or None where it finds no memory though training gave up all that it can.

        It may be called several times, and must not have changed anything when it fails.
        """
        while True:
            try:
                return compute()
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
            # Outside of the handler, so that what the failed computation held is free.
            self._ran_out()
            if not self._relieve():
                return None

    def in_halves(self, count: int, compute: Callable[[slice], T]) -> Iterator[tuple[slice, T | None]]:
        """``compute`` for rows [0, count) in order: all at once, or in halves of halves where there is no memory.

        None for a single row that finds none.
        """
        left = [slice(0, count)] if count else []
        while left:
            rows = left.pop()
            found = self.attempt(partial(compute, rows))
            middle = (rows.start + rows.stop) // 2
            if found is None and middle > rows.start:
                left += [slice(middle, rows.stop), slice(rows.start, middle)]
            else:
                yield rows, found

    def halve(self, tokens: int) -> None:
        """A step of ``tokens`` found no memory: all sequences are preempted, and steps have half as many tokens."""
        self.counts["steps"] += 1
        self._scheduler.shrink(max(1, tokens // 2))
        limits = self._scheduler.limits
        log.warning(
            "out of memory in a step of %d tokens: steps have at most %d tokens and %d sequences for %.0f s or longer",
            tokens,
            limits.max_batch_tokens,
            limits.max_running,
            self._wait,
        )

    def recover(self) -> None:
        """Give something back, if it is time."""
        now = self._clock()
        if self._due is None or now < self._due:
            return
        self._returned = now
        if self._scheduler.widen():
            self._due = now + self._wait
            return
        self._due = None
        self._training.resume()
        log.info("memory has sufficed for %.0f s: steps and training are as configured again", self._wait)

    def moment(self) -> float | None:
        """Seconds until :meth:`recover` has something to do; None: never."""
        return None if self._due is None else max(0.0, self._due - self._clock())

    def _ran_out(self) -> None:
        release_cached()
        now = self._clock()
        self.counts["errors"] += 1
        if self._returned is not None and now - self._returned < 2 * self._wait:
            self._wait = min(2 * self._wait, LONGEST)
        elif self._due is None:
            self._wait = CALM
        self._returned, self._due = None, now + self._wait

    def _relieve(self) -> bool:
        """Have training free something; False if it has nothing left that it could go on without."""
        if self._training.drop_activations():
            self.counts["micro_batches"] += 1
            return True
        if (job := self._training.suspend()) is not None:
            self.counts["jobs"] += 1
            log.warning("out of memory: training job %s is suspended and goes on when there is memory again", job)
            return True
        return False
