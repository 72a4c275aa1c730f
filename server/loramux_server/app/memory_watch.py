"""Readiness by memory: a server that is about to be killed for its memory is no place for further requests."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from ..telemetry.logs import get_logger

logger = get_logger(__name__)

SECONDS = 2.0
"""Between two looks."""
STEP_BACK = 0.05
"""How far the share must fall below the limit, so that readiness does not change with every request."""


class MemoryWatch:
    """Tells when the memory of the control groups is nearly used up, and when it is not any more.

    ``share`` gives the part of the tightest limit that is in use, 0 to 1; ``limit`` is where it is too much;
    ``changed`` is called after each change of ``full``.
    """

    def __init__(self, share: Callable[[], float], limit: float, changed: Callable[[], None]) -> None:
        self.full = False
        self._share, self._limit, self._changed = share, limit, changed

    async def run(self) -> None:
        """Look again and again, until it is cancelled."""
        while True:
            self.look()
            await asyncio.sleep(SECONDS)

    def look(self) -> None:
        """Compare once."""
        share = self._share()
        full = share > (self._limit - STEP_BACK if self.full else self._limit)
        if full == self.full:
            return
        self.full = full
        if full:
            what = "memory is nearly used up: not ready until there is more; raise the memory limit, or serve less"
            logger.warning(what, share=round(share, 3), limit=self._limit)
        else:
            logger.info("there is memory again", share=round(share, 3))
        self._changed()
