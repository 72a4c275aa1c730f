"""A readers-writer lock."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager


class ReadersWriterLock:
    """Held by many at once, or by one alone. One that waits to be alone keeps new ones out. For one event loop."""

    def __init__(self) -> None:
        self._holders = 0
        self._exclusive = 0  # how many wait to hold it alone, or do
        self._changed = asyncio.Event()

    @asynccontextmanager
    async def hold(self, *, exclusive: bool) -> AsyncGenerator[None]:
        """Hold the lock within the block, alone if ``exclusive``."""
        self._exclusive += exclusive
        try:
            while self._holders if exclusive else self._exclusive:
                self._changed.clear()
                await self._changed.wait()
            self._holders += 1
            try:
                yield
            finally:
                self._holders -= 1
        finally:
            self._exclusive -= exclusive
            self._changed.set()
