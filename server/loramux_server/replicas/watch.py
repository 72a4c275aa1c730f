"""What becomes of the cluster while the front serves: its head goes away, or the application is removed from it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Protocol

from .head import ASK_SECONDS, SILENT_SECONDS, Head, bearable_seconds

ANSWER_SECONDS = 5.0
"""How long Ray Serve has to say whether the application is there."""


class Watched(Protocol):
    """What is asked of the cluster. Both block."""

    def ask_head(self) -> None:
        """Return where the head answers."""

    def application_is_gone(self) -> bool:
        """Whether Ray Serve has the application no more."""


class ClusterWatch:
    """Follows the cluster. ``serves`` says whether any replica takes work."""

    def __init__(
        self, cluster: Watched, serves: Callable[[], object], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._cluster, self._serves, self._clock = cluster, serves, clock
        self._head = Head(cluster.ask_head, clock)
        # Its own: an answer that never comes must keep nothing else from a thread.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ray-status")

    @property
    def headless(self) -> bool:
        """Whether the head has been away for so long that it is no use to ask it anything."""
        return self._head.silent_seconds > SILENT_SECONDS

    async def lost(self, drop_silent: Callable[[], Awaitable[object]]) -> str:
        """Return, with the reason, once only another start of the server can help: before Ray would end this process.

        Meanwhile ``drop_silent`` is called again and again while the head is away: nobody else tells which replicas
        have died.
        """
        self._head.start()
        most, there = bearable_seconds(), self._clock()
        while True:
            await asyncio.sleep(ASK_SECONDS)
            if (silent := self._head.silent_seconds) > most:
                return f"for {silent:.0f} s, {self._head.fault}"
            if self.headless:
                await drop_silent()
                there = self._clock()
            elif self._serves() or not await self._application_is_gone():
                there = self._clock()
            elif self._clock() - there > most:
                return "the application was removed from Ray Serve"

    def stop(self) -> None:
        """Ask no more."""
        self._head.stop()
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _application_is_gone(self) -> bool:
        asked = asyncio.get_running_loop().run_in_executor(self._thread, self._cluster.application_is_gone)
        with suppress(Exception):  # Ray's errors, or no answer: nobody knows
            return await asyncio.wait_for(asked, ANSWER_SECONDS)
        return False
