"""Deadlines: points on the monotonic clock after which an answer is of no use."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from ..core.errors import Code, Error


def bounded(deadline: float | None, max_seconds: float) -> float:
    """The caller's deadline, or the server's own if that comes first or there is none."""
    latest = time.monotonic() + max_seconds
    return latest if deadline is None else min(deadline, latest)


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
