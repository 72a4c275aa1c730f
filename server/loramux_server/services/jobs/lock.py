"""A room in which many work beside each other, or one works alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager


class Room:
    """Entered with :meth:`enter`; belongs to one event loop."""

    def __init__(self) -> None:
        self._inside = 0
        self._wanted = 0  # how many wait to be alone, or are
        self._news = asyncio.Event()

    @asynccontextmanager
    async def enter(self, *, alone: bool) -> AsyncGenerator[None]:
        """Wait until there is nobody inside (``alone``), or nobody who is or wants to be alone; then be inside."""
        self._wanted += alone
        try:
            while self._inside if alone else self._wanted:
                self._news.clear()
                await self._news.wait()
            self._inside += 1
            try:
                yield
            finally:
                self._inside -= 1
        finally:
            self._wanted -= alone
            self._news.set()
