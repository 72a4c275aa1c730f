"""Removes the files that nothing names any more, while the server runs."""

from __future__ import annotations

import asyncio

from ...core.errors import Error
from ...core.observing.outage import Outage
from ...store.store import Store
from ...telemetry.logs import get_logger

log = get_logger(__name__)

RETRY_SECONDS = 30.0
"""After a deletion, how often to look again for files that were in use; and after a failure."""


class Collector:
    """Collects once at the start, and after each deletion until nothing is left to remove.

    The app runs ``run`` as a task; ``wake`` is set after a deletion.
    """

    def __init__(self, store: Store, wake: asyncio.Event, *, retry_seconds: float = RETRY_SECONDS) -> None:
        self._store = store
        self._wake = wake
        self._retry_seconds = retry_seconds
        self._outage = Outage()

    async def run(self) -> None:
        """Work until cancelled."""
        while True:
            self._wake.clear()
            left = await self._collect()
            try:
                async with asyncio.timeout(self._retry_seconds if left else None):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def _collect(self) -> bool:
        """Remove what can be removed; whether something is left for later."""
        try:
            gone = await asyncio.to_thread(self._store.collect_orphans)
            left = await asyncio.to_thread(self._store.orphans)
        except Error as error:
            if self._outage.failed():
                log.warning("unused files cannot be removed now", error=error.message, times=self._outage.failures)
            return True
        if (seconds := self._outage.over()) is not None:
            log.warning("unused files can be removed again", after_seconds=round(seconds, 1))
        if gone:
            log.info("unused files removed", blobs=len(gone))
        return bool(left)
