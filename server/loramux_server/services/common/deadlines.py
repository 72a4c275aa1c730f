"""Deadlines: points on the monotonic clock after which an answer is of no use. And the preparation within them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from ...core.errors import Code, Error
from .workers import PREPARED_AT_ONCE


def bounded(deadline: float | None, max_seconds: float) -> float:
    """The caller's deadline, or the server's own if that comes first or there is none."""
    latest = time.monotonic() + max_seconds
    return latest if deadline is None else min(deadline, latest)


def code_of_cancelled(deadline: float | None) -> Code:
    """Why a caller has left now: a door may notice the end of its time before :func:`until` does."""
    late = deadline is not None and time.monotonic() >= deadline
    return Code.DEADLINE_EXCEEDED if late else Code.CANCELLED


@asynccontextmanager
async def until(deadline: float) -> AsyncIterator[None]:
    """Run the block, but not beyond ``deadline``: then it is cancelled and DEADLINE_EXCEEDED raised."""
    try:
        async with asyncio.timeout(deadline - time.monotonic()) as scope:
            yield
    except TimeoutError:
        if not scope.expired():
            raise
        raise Error(
            Code.DEADLINE_EXCEEDED,
            "the deadline passed before the answer was complete; allow more time",
        ) from None


class Preparation:
    """What is done to requests before the engine is asked. One instance serves all methods.

    A few at a time, so that thousands at once leave the loop to the calls that come, and their refusals.
    ``max_seconds``: what a request gets that has no deadline, or a later one.
    """

    def __init__(self, max_seconds: float) -> None:
        self._max_seconds = max_seconds
        self._few = asyncio.Semaphore(PREPARED_AT_ONCE)

    @asynccontextmanager
    async def turn(self, deadline: float | None) -> AsyncIterator[float]:
        """Wait for a turn, then run the block; gives the deadline that holds. Raises DEADLINE_EXCEEDED after it."""
        latest = bounded(deadline, self._max_seconds)
        async with until(latest), self._few:
            yield latest
