"""How many tokens a micro-batch has: few enough that requests never wait long, and enough to be efficient."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from ..work import SETTLE, Interruptible

T = TypeVar("T")

MAX_TOKENS = 4096
"""Most tokens of a micro-batch: they bound the memory of one forward and backward pass."""
WORK_ITEM_SECONDS = 0.03
"""Aim for one work item (a layer's backward) while requests are served: a request waits for its end."""
IDLE_SECONDS = 0.05
"""Longest stretch of work items while no request is served, since one may come."""
IDLE_MICRO_BATCH_SECONDS = 0.2
"""Aim for a micro-batch while no request is served: larger ones are hardly faster, and activations take memory."""
IDLE_TOKENS = 512
"""Tokens that a micro-batch has at least while no request is served: smaller ones pay the fixed cost more often.

Measured on two processor cores with the default base: 1,024 tokens in one micro-batch: 6.12 s; in micro-batches of
512: 6.15 s; of 256: 6.7 s; of 128: 7.8 s.
"""
LOGITS_BYTES = {"cpu": 0, "cuda": 256 << 20}
"""Bytes of logits in float32 that exist at a time where that is more than 64 rows.

On a GPU each chunk costs launches and reads the head's weights, which are larger than a chunk of few rows. A
processor keeps 64.
"""
FIRST_TOKENS = 64
"""Tokens of the first micro-batch beside requests, before any speed is known."""


def activation_budget(free: int, memory: int | None) -> int:
    """Bytes of activations before gradient checkpointing starts: ``memory``, or a quarter of the ``free`` bytes."""
    return free // 4 if memory is None else memory


class MicroBatchSizer:
    """Sizes micro-batches by the speed of the recent ones."""

    def __init__(self, work_items: float, device_seconds: Callable[[], float | None] = lambda: None) -> None:
        """``work_items``: the seconds of a micro-batch divided by those of its longest work item.

        ``device_seconds``: see :class:`~..work_queue.WorkQueue`; None: the host's clock tells.
        """
        self.work_items, self._device_seconds = work_items, device_seconds
        self.serving = False
        """Whether requests are being served."""
        self._rate: float | None = None  # tokens a second, smoothed
        self._limit: int | None = None  # tokens, since memory ran out

    @property
    def max_tokens(self) -> int:
        """Most tokens of a micro-batch that fit into memory."""
        return MAX_TOKENS if self._limit is None else self._limit

    @property
    def tokens(self) -> int:
        """Tokens that the next micro-batch should have."""
        if not self.serving:
            return min(self.max_tokens, max(IDLE_TOKENS, int((self._rate or 0.0) * IDLE_MICRO_BATCH_SECONDS)))
        if self._rate is None:
            return min(self.max_tokens, FIRST_TOKENS)
        return max(1, min(self.max_tokens, int(self._rate * WORK_ITEM_SECONDS * self.work_items)))

    def first(self, rows: Sequence[int], lengths: Sequence[int], max_rows: int | None = None) -> list[int]:
        """As many of the first ``rows`` as a micro-batch should have now, at least one.

        ``lengths[i]`` is the number of tokens of row i.
        """
        count, aim = 1, self.tokens
        most = min(len(rows), max_rows or len(rows))
        while count < most and sum(lengths[i] for i in rows[: count + 1]) <= aim:
            count += 1
        return list(rows[:count])

    def timed(self, tokens: int, work: Interruptible[T]) -> Interruptible[T]:
        """Run the ``work`` of a micro-batch of ``tokens`` tokens and learn from its time, pauses left out."""
        before, spent = self._device_seconds(), 0.0
        while True:
            started = time.monotonic()
            try:
                signal = next(work)
            except StopIteration as done:
                spent += time.monotonic() - started
                result: T = done.value
                break
            spent += time.monotonic() - started
            yield signal
        if before is not None:  # on a device the host has only launched the work
            yield SETTLE
            spent = (self._device_seconds() or 0.0) - before
        rate = tokens / max(spent, 1e-6)
        self._rate = rate if self._rate is None else 0.7 * self._rate + 0.3 * rate
        return result

    def limit(self, tokens: int) -> None:
        """After memory ran out: micro-batches have at most ``tokens`` tokens, until :meth:`lift`."""
        self._limit = tokens

    def lift(self) -> None:
        """Memory suffices again."""
        self._limit = None
