"""The engine's stats for the thread that serves a scrape, which must never fail with the engine."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Callable
from typing import Any

from ..core.backend import Backend, EngineStats
from ..core.errors import Error
from ..core.outage import Outage
from ..telemetry.logs import get_logger

logger = get_logger(__name__)

SCRAPE_TIMEOUT = 2.0
"""Seconds that a scrape waits for the engine's stats before it goes on without them."""


def stats_from_thread(
    backend: Backend, loop: asyncio.AbstractEventLoop, timeout: float = SCRAPE_TIMEOUT
) -> Callable[[], EngineStats | None]:
    """A function for other threads that gives the engine's stats.

    It gives the last ones while the engine is too busy to answer, and None while there is no engine to ask.
    """
    last: EngineStats | None = None
    outage = Outage()

    def fetch() -> EngineStats | None:
        nonlocal last
        coroutine: Any = backend.stats()
        try:
            asked = asyncio.run_coroutine_threadsafe(coroutine, loop)
        except RuntimeError:  # the loop is closed: the server has stopped meanwhile
            coroutine.close()
            return None
        try:
            last = asked.result(timeout)
            outage.over()
        except concurrent.futures.TimeoutError:
            asked.cancel()
            if outage.failed():
                logger.warning("the engine gave no stats in time", seconds=timeout, times=outage.failures)
        except (Error, concurrent.futures.CancelledError):  # it is starting again, has failed, or is stopping
            last = None
        return last

    return fetch
