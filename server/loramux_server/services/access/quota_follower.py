"""Follows in the database what operators change of quotas, and what other servers grant of them.

Calls never wait for it. Twice a second a server tells what it took from buckets and which calls it has, and takes over
what all have taken: what one grants is felt by the others within a second. So over several servers a limit can be
passed by what they grant within a second, and what was too much flows back before anything is granted again.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress

from ...core.callers.quota_use import Counts, News
from ...core.errors import Error
from ...core.observing.outage import Outage
from ...store.quota_use import LAPSE_SECONDS, QuotaUse
from ...store.quotas import QuotaTable
from ...telemetry.logs import get_logger
from .quotas import QuotaMeter

log = get_logger(__name__)

REFRESH_SECONDS = 1.0
"""How often a server alone asks the database."""
RECONCILE_SECONDS = 0.5
"""How often one of several does: what happened is told in one round, and heard in the next."""
SIGN_SECONDS = 3.0
"""How often it gives a sign of life where it has nothing to tell."""


class QuotaFollower:
    """Keeps a meter up to date. ``use`` is None where no other server can be at the database."""

    def __init__(self, meter: QuotaMeter, limits: QuotaTable, use: QuotaUse | None) -> None:
        self._meter, self._limits, self._use = meter, limits, use
        self._id = uuid.uuid4().hex
        self._revision = -1
        self._alone = True
        """A server alone tells nothing but that it lives."""
        self._told: Mapping[str, Counts] = {}
        self._told_at: float | None = None
        self._heard_at: float | None = None
        """By the database's clock."""
        self._lapses = 0.0
        """When what is known of the others' calls is too old, on the meter's clock."""
        self._outage = Outage()

    async def run(self, changed: Callable[[], object]) -> None:
        """Follow until cancelled, calling ``changed`` after each change of a limit.

        While the database is away, what was last known holds.
        """
        while True:
            await self.step(changed)
            await asyncio.sleep(REFRESH_SECONDS if self._alone else RECONCILE_SECONDS)

    async def step(self, changed: Callable[[], object]) -> None:
        """Follow once."""
        try:
            if await self.refresh():
                changed()
            await self.reconcile()
        except Error as error:
            if self._meter.now() >= self._lapses:
                self._meter.elsewhere = {}
            if self._outage.failed():
                log.error("quotas not followed, the last ones known hold", error=error.message)
        else:
            if (seconds := self._outage.over()) is not None:
                log.warning("quotas followed again", after_seconds=round(seconds, 1))

    async def refresh(self) -> bool:
        """Read the limits anew; gives whether any has changed."""
        revision, quotas = await asyncio.to_thread(self._limits.changed, self._revision)
        if revision == self._revision:
            return False
        self._revision, self._meter.quotas = revision, quotas
        return True

    async def reconcile(self) -> None:
        """Tell what the others have to know, and hear of them. Raises ``Error``: the next time tells it."""
        if self._use is None or not self._meter.quotas.of_calls:
            return
        was_alone = self._alone
        await self._reconcile(self._use)
        if was_alone and not self._alone:  # it knows nothing yet of what was taken before it came
            await self._reconcile(self._use)

    async def leave(self) -> None:
        """Tell what is left, and that this server stops. Without the database its calls lapse."""
        if self._use is not None and self._told_at is not None:
            taken = () if self._alone else tuple(each.taken for each in self._meter.tell())
            with suppress(Error):
                await asyncio.to_thread(self._use.leave, self._id, News({}, taken))

    async def _reconcile(self, use: QuotaUse) -> None:
        meter, now = self._meter, self._meter.now()
        told = [] if self._alone else meter.tell()
        counts = meter.counts()
        due = self._told_at is None or now - self._told_at >= SIGN_SECONDS
        changed = not self._alone and (bool(told) or counts != self._told)
        news = News(counts, tuple(each.taken for each in told)) if due or changed else None
        try:
            heard = await asyncio.to_thread(use.reconcile, self._id, news, self._heard_at)
        except BaseException:
            # Whether it was committed is not known. Told twice, it flows back within a minute.
            meter.put_back(told)
            raise
        if news is not None:
            self._told, self._told_at = counts, now
        self._heard_at, self._lapses = heard.now, meter.now() + LAPSE_SECONDS
        self._alone = not heard.servers
        meter.elsewhere = heard.counts
        if not self._alone:
            meter.hear(heard.levels)
