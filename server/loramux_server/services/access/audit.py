"""Which calls the audit log has: all that change something, and all that were refused for who made them."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

from ...core.call import Call
from ...core.errors import Code, Error
from ...telemetry.audit import AuditLog, Entry
from ...telemetry.logs import get_logger
from .access import Incoming

logger = get_logger(__name__)

REFUSALS = 60
"""Refused calls of one tenant that are written down each minute, and of all unknown callers together."""
WINDOW = 60.0
"""Seconds after which they are counted anew."""

_NOT_ALLOWED = {Code.UNAUTHENTICATED.name, Code.PERMISSION_DENIED.name}
_CHANGED_NOTHING = _NOT_ALLOWED | {
    Code.INVALID_ARGUMENT.name,
    Code.NOT_FOUND.name,
    Code.ALREADY_EXISTS.name,
    Code.FAILED_PRECONDITION.name,
    Code.RESOURCE_EXHAUSTED.name,
}
"""Outcomes of refused calls. A flood of these must fill neither the disk nor the log, and so hide what was done."""


class CallAudit:
    """Writes calls to the audit log. One instance serves all doors."""

    def __init__(self, log: AuditLog, clock: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._clock = clock
        self._window = clock()
        self._refused: Counter[str] = Counter()
        """Refusals in this window by tenant; empty: unknown callers."""

    def wants(self, incoming: Incoming, outcome: str) -> bool:
        """Whether a call that ends so belongs into the log."""
        return incoming.asks_for.audited or outcome in _NOT_ALLOWED

    async def done(self, incoming: Incoming, call: Call) -> None:
        """A call did what it was asked for. On return the log has it on disk. Raises STORAGE_FULL and its kin."""
        await self._write(*self._left_out(), _entry(incoming, call, "OK"))

    async def failed(self, incoming: Incoming, call: Call | None, outcome: str, reason: str) -> None:
        """A call was refused or failed. ``call`` is None where it is not known who made it."""
        entries = [*self._left_out(), _entry(incoming, call, outcome, reason)]
        if outcome in _CHANGED_NOTHING:
            tenant = entries[-1].tenant
            self._refused[tenant] += 1
            if self._refused[tenant] > REFUSALS:
                return
        await write_down(self._log, *entries)  # the caller is told how the call failed, and not how this did

    async def close(self) -> None:
        """Write how many refusals were left out since the last entry."""
        if entries := self._left_out(now=True):
            await self._write(*entries)

    async def _write(self, *entries: Entry) -> None:
        await asyncio.to_thread(self._log.write, *entries)

    def _left_out(self, now: bool = False) -> list[Entry]:
        """Once a window is over, an entry for each tenant of whom refusals were left out in it."""
        if not now and self._clock() - self._window < WINDOW:
            return []
        over = [(tenant, count - REFUSALS) for tenant, count in self._refused.items() if count > REFUSALS]
        self._refused.clear()
        self._window = self._clock()
        return [Entry("refused calls", outcome="", tenant=tenant, suppressed=count) for tenant, count in over]


async def write_down(log: AuditLog | None, *entries: Entry) -> None:
    """Write what nobody waits for: a failure is an error in the server's log."""
    if log is not None:
        try:
            await asyncio.to_thread(log.write, *entries)
        except Error as error:
            logger.error("the audit log cannot be written", error=error.message)


def _entry(incoming: Incoming, call: Call | None, outcome: str, reason: str = "") -> Entry:
    entry = Entry(
        incoming.short_method,
        outcome=outcome,
        reason="" if reason == outcome else reason,
        peer=incoming.credentials.peer,
        request_id=incoming.request_id,
    )
    if call is None:
        return entry
    return replace(
        entry,
        object=call.subject.name,
        details=call.subject.details,
        tenant=call.principal.tenant,
        key=call.principal.key_id,
        request_id=call.request_id,
    )
