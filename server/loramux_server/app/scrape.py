"""The engine's stats for the thread that serves a scrape, which must fail with neither engine nor database."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Callable, Collection, Coroutine
from contextlib import suppress
from threading import Lock
from typing import Any, TypeVar

from ..core.backend import Backend, EngineStats
from ..core.errors import Error
from ..core.observing.outage import Outage
from ..store.records import VersionRecord
from ..store.store import Store
from ..telemetry.logs import get_logger
from ..telemetry.metrics.reading import NamedVersion, Names

logger = get_logger(__name__)

SCRAPE_TIMEOUT = 2.0
"""Seconds that a scrape waits for the engine's stats before it goes on without them."""


T = TypeVar("T")


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
        try:
            last = _on_loop(backend.stats(), loop, timeout)
            outage.over()
        except concurrent.futures.TimeoutError:
            if outage.failed():
                logger.warning("the engine gave no stats in time", seconds=timeout, times=outage.failures)
        except (Error, concurrent.futures.CancelledError):  # it is starting again, has failed, or is stopping
            last = None
        return last

    return fetch


def names_from_thread(
    store: Store, loop: asyncio.AbstractEventLoop, timeout: float = SCRAPE_TIMEOUT
) -> Callable[[Collection[str]], Names]:
    """A function for other threads that gives the names of adapter versions by their content.

    While the database is away or slow it gives those that it found last, and asks again only once it was answered.
    """
    last: Names = {}
    asking = Lock()

    def find(digests: Collection[str]) -> Names:
        nonlocal last
        with asking, suppress(Error):
            names: dict[str, list[NamedVersion]] = {}
            for record in store.adapters.versions_with(digests):
                names.setdefault(record.digest, []).append(_named(record))
            last = names
        return last

    def look_up(digests: Collection[str]) -> Names:
        if asking.locked():
            return last
        with suppress(concurrent.futures.TimeoutError, concurrent.futures.CancelledError):
            return _on_loop(asyncio.to_thread(find, digests), loop, timeout)
        return last

    return look_up


def _named(record: VersionRecord) -> NamedVersion:
    return NamedVersion(record.name, record.version, record.meta.rank, record.current, record.pinned)


def _on_loop(coroutine: Coroutine[Any, Any, T], loop: asyncio.AbstractEventLoop, timeout: float) -> T:
    """What a coroutine gives on another thread's loop. Raises TimeoutError, and CancelledError once that stopped."""
    try:
        asked = asyncio.run_coroutine_threadsafe(coroutine, loop)
    except RuntimeError:  # the loop is closed: the server has stopped meanwhile
        coroutine.close()
        raise concurrent.futures.CancelledError from None
    try:
        return asked.result(timeout)
    except concurrent.futures.TimeoutError:
        asked.cancel()
        raise
