"""Records what requests used: gathered in memory, written every few seconds, each flush exactly once."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

from ...core.callers.usage import Amounts, UsageKey, UsageMethod, day_of
from ...core.errors import Code, Error
from ...core.observing.observer import NullObserver, RequestFinished
from ...core.observing.outage import Outage
from ...store.usage import UsageTable
from ...telemetry.labels import OTHER, stack_label
from ...telemetry.logs import get_logger

log = get_logger(__name__)

MOST_WAITING = 50_000
"""Keys that wait to be written. Beyond, while the database is away, new ones of a tenant and day share ``_other``."""
LAST_SECONDS = 10.0
"""How long a server that stops goes on trying to write what waits."""
RETRY_SECONDS = 0.5
_BY_THE_CALLER = frozenset({Code.CANCELLED.name, Code.DEADLINE_EXCEEDED.name, Code.FAILED_PRECONDITION.name})
"""How requests end before they are answered without a fault of the server's: the last one by their adapters."""
_ITS_GRAMMAR = "GRAMMAR_RESOURCE_EXHAUSTED"
"""Reason of requests that end so by their grammar. Were they free, every answer could be had for nothing."""


class UsageRecorder(NullObserver):
    """Gathers what requests used until it is written. It belongs to one event loop, as every observer does.

    A request counts when it ends, with what its answer says in ``usage``, on the day of UTC it ends on. What was
    written before a crash is in the database once; what was not is lost with the process.
    """

    def __init__(self, table: UsageTable, now: Callable[[], float] = time.time) -> None:
        self._table, self._now = table, now
        self._run, self._sequence = uuid.uuid4().hex, 0
        self._waiting: dict[UsageKey, Amounts] = {}
        self._flushing: dict[UsageKey, Amounts] = {}
        """Of the flush ``_sequence``, which may be in the database, if it is not empty."""
        self._turn = asyncio.Lock()
        self._outage = Outage()

    def request_finished(self, event: RequestFinished) -> None:
        amounts = _amounts(event)
        if amounts.requests:
            method = UsageMethod(event.method)
            key = UsageKey(day_of(self._now()), event.tenant, stack_label(event.stack), method)
            if len(self._waiting) >= MOST_WAITING and key not in self._waiting:
                key = replace(key, adapter=OTHER)
            self._waiting[key] = self._waiting.get(key, Amounts()) + amounts

    async def flush(self) -> None:
        """Write what waits; durable on return. Raises ``Error``: all of it still waits then."""
        async with self._turn:
            if self._flushing:
                await self._write()
            if self._waiting:
                self._flushing, self._waiting = self._waiting, {}
                self._sequence += 1
                await self._write()

    async def _write(self) -> None:
        # Whoever cancels this does not stop the thread. The same flush is tried again then, which adds nothing twice.
        await asyncio.to_thread(self._table.add, self._run, self._sequence, self._flushing)
        self._flushing = {}

    async def follow(self, interval: float) -> None:
        """Write what waits every ``interval`` seconds until cancelled, however long the database is away."""
        while True:
            await asyncio.sleep(interval)
            await self._try()

    async def close(self) -> None:
        """Write what waits, for a server that stops. What cannot be written within a time is told by the log."""
        loop = asyncio.get_running_loop()
        end = loop.time() + LAST_SECONDS
        while True:
            if await self._try():
                return
            if loop.time() >= end:
                break
            await asyncio.sleep(RETRY_SECONDS)
        left = sum((*self._flushing.values(), *self._waiting.values()), Amounts())
        log.error("usage lost: the database is away and the server stops", **asdict(left))

    async def _try(self) -> bool:
        try:
            await self.flush()
        except Exception as error:  # also a defect: what waits must not be lost with the task that writes it
            if self._outage.failed():
                rows = len(self._flushing) + len(self._waiting)
                log.warning("usage not written yet, it waits in memory", rows=rows, **_told(error))
            return False
        if (seconds := self._outage.over()) is not None:
            log.warning("usage written again", after_seconds=round(seconds, 1))
        return True


def _told(error: Exception) -> dict[str, Any]:
    """An error for the log; a defect with its traceback."""
    return {"error": error.message} if isinstance(error, Error) else {"exc_info": error}


def _amounts(event: RequestFinished) -> Amounts:
    """What a request is charged with.

    Nothing, where it was the server's own, where the server failed, or where it ended before the first token.
    """
    begun = (event.code in _BY_THE_CALLER or event.reason == _ITS_GRAMMAR) and event.completion_tokens
    if event.call is None or not (event.code == "OK" or begun):
        return Amounts()
    if event.method == UsageMethod.SCORE:  # its continuation is read, as the prompt is
        return Amounts(1, event.prompt_tokens + event.completion_tokens, event.cached_tokens)
    return Amounts(1, event.prompt_tokens, event.cached_tokens, event.completion_tokens)
