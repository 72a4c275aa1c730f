"""What callers use, counted against their quotas: calls and tokens of a minute, what is answered and what waits.

Each server counts its own. Rates are token buckets: what a limit grants flows back evenly, a minute's worth at most,
so a caller that waits the seconds it is told gets in, and no minute begins with a stampede.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from ...core.callers.principal import Principal
from ...core.callers.quota import NO_QUOTAS, Limit, Quota, exceeded
from ...core.errors import Error
from ...core.observing.outage import Outage
from ...store.quotas import QuotaTable
from ...telemetry.logs import get_logger
from .methods import Method

log = get_logger(__name__)

REFRESH_SECONDS = 1.0
"""How often a server looks whether limits were changed."""
SWEEP_SECONDS = 60.0
"""How often callers are forgotten that have nothing running and all of their minute left."""
RETRY_SECONDS = 1.0
"""What a caller is told to wait where something running must end first."""


class Bucket:
    """What is left of a rate. Time is seconds on a monotonic clock."""

    def __init__(self, per_minute: int, now: float) -> None:
        self.size = per_minute
        self._level, self._at = float(per_minute), now

    def used(self, now: float) -> float:
        """What is taken and has not flowed back."""
        return self.size - self._flow(now)

    def wait(self, amount: int, now: float) -> float:
        """Seconds until ``amount`` can be taken; 0: now."""
        missing = amount - self._flow(now)
        return missing * 60.0 / max(self.size, 1) if missing > 1e-9 else 0.0

    def add(self, amount: float, now: float) -> None:
        """Take (below 0) or give back an amount."""
        self._level = min(self._flow(now) + amount, float(self.size))

    def resize(self, per_minute: int, now: float) -> None:
        """Another limit from now on; what is used stays used."""
        left = self._flow(now) + per_minute - self.size
        self.size = per_minute
        self._level = min(left, float(per_minute))

    def _flow(self, now: float) -> float:
        self._level = min(self._level + (now - self._at) * self.size / 60.0, float(self.size))
        self._at = now
        return self._level


@dataclass(frozen=True, slots=True)
class Rate:
    """What a caller has left of a rate, under the strictest of its limits."""

    limit: Limit
    size: int
    """What the limit grants in a minute."""
    left: int
    seconds: float
    """Until all of it is back."""


class Use:
    """What one subject, a tenant or a key, uses now."""

    def __init__(self, subject: str) -> None:
        self.subject = subject
        self.quota = Quota()
        self.running = self.waiting = 0
        self._rates: dict[Limit, Bucket] = {}

    def limit(self, quota: Quota, now: float) -> None:
        """Take over the limits of now."""
        if quota == self.quota:
            return
        self.quota = quota
        for limit in _RATES:
            per_minute, bucket = quota.of(limit), self._rates.get(limit)
            if per_minute is None:
                self._rates.pop(limit, None)
            elif bucket is None:
                self._rates[limit] = Bucket(per_minute, now)
            else:
                bucket.resize(per_minute, now)

    def check_rate(self, limit: Limit, amount: int, now: float) -> None:
        """Raise RESOURCE_EXHAUSTED unless ``amount`` can be taken now."""
        bucket = self._rates.get(limit)
        if bucket is not None and (wait := bucket.wait(amount, now)) > 0:
            used = max(0, math.ceil(bucket.used(now) - 1e-9))
            raise exceeded(self.subject, limit, bucket.size, used, asked=amount, retry_after=wait)

    def check_count(self, limit: Limit, used: int) -> None:
        """Raise RESOURCE_EXHAUSTED where one more would be over the limit."""
        allowed = self.quota.of(limit)
        if allowed is not None and used >= allowed:
            raise exceeded(self.subject, limit, allowed, used, retry_after=RETRY_SECONDS)

    def add(self, limit: Limit, amount: float, now: float) -> None:
        """Take from a rate (below 0), or give back."""
        if (bucket := self._rates.get(limit)) is not None:
            bucket.add(amount, now)

    def rate(self, limit: Limit, now: float) -> Rate | None:
        """What is left of a rate; None: it is not limited."""
        if (bucket := self._rates.get(limit)) is None:
            return None
        used = bucket.used(now)
        left = max(0, math.floor(bucket.size - used + 1e-9))
        return Rate(limit, bucket.size, left, max(0.0, used) * 60.0 / max(bucket.size, 1))

    def idle(self, now: float) -> bool:
        """Whether nothing would be lost by forgetting it."""
        return not self.running and all(bucket.used(now) <= 0 for bucket in self._rates.values())


class Admission:
    """A call that counts as running, and as waiting until its first token. A context: it counts until that ends."""

    def __init__(self, uses: tuple[Use, ...]) -> None:
        self._uses = uses
        self._waits = bool(uses)
        for use in uses:
            use.running += 1
            use.waiting += 1

    def answered(self) -> None:
        """The first token is there. Further calls do nothing."""
        if self._waits:
            self._waits = False
            for use in self._uses:
                use.waiting -= 1

    def __enter__(self) -> Self:
        _admission.set(self)
        return self

    def __exit__(self, *_: object) -> None:
        self.answered()
        uses, self._uses = self._uses, ()
        for use in uses:
            use.running -= 1


_admission: ContextVar[Admission | None] = ContextVar("loramux_admission", default=None)


class Reservation:
    """Tokens taken from the minute for one request. A context: at its end what was not ``spent`` is given back."""

    def __init__(self, uses: tuple[Use, ...], tokens: int, clock: Callable[[], float]) -> None:
        self.spent = 0
        """Tokens that were really computed, as far as is known."""
        self._uses, self._tokens, self._clock = uses, tokens, clock
        self._admission = _admission.get()

    def answered(self) -> None:
        """The first token is there: the request does not wait any more."""
        if self._admission is not None:
            self._admission.answered()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        uses, self._uses = self._uses, ()
        for use in uses:
            use.add("tokens_per_minute", self._tokens - self.spent, self._clock())


class QuotaMeter:
    """Counts what callers use. One instance serves all doors; all methods run on the event loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.quotas = NO_QUOTAS
        """The limits of now."""
        self._clock = clock
        self._uses: dict[str, Use] = {}
        self._swept = clock()
        self._revision = -1
        self._outage = Outage()

    def admit(self, principal: Principal, method: Method) -> Admission:
        """Count a call; RESOURCE_EXHAUSTED, nothing counted, where a limit of its tenant or key is reached."""
        if not method.counted:
            return Admission(())
        now = self._clock()
        uses = tuple(self._of(principal, now))
        for use in uses:
            use.check_rate("requests_per_minute", 1, now)
            if method.generates:
                use.check_count("concurrent", use.running)
                use.check_count("queued", use.waiting)
        for use in uses:
            use.add("requests_per_minute", -1, now)
        return Admission(uses if method.generates else ())

    def reserve(self, principal: Principal, tokens: int) -> Reservation:
        """Take the most tokens that a request can need; RESOURCE_EXHAUSTED, nothing taken, where that is too many."""
        now = self._clock()
        uses = tuple(self._of(principal, now))
        for use in uses:
            use.check_rate("tokens_per_minute", tokens, now)
        for use in uses:
            use.add("tokens_per_minute", -tokens, now)
        return Reservation(uses, tokens, self._clock)

    def rates(self, principal: Principal) -> list[Rate]:
        """What a caller has left of each rate that is limited for it."""
        now = self._clock()
        uses = tuple(self._of(principal, now))
        found = ([rate for use in uses if (rate := use.rate(limit, now)) is not None] for limit in _RATES)
        return [min(rates, key=lambda rate: rate.left) for rates in found if rates]

    @property
    def subjects(self) -> int:
        """Tenants and keys of whom something is remembered."""
        return len(self._uses)

    async def refresh(self, table: QuotaTable) -> bool:
        """Read the limits anew; gives whether any has changed."""
        revision, quotas = await asyncio.to_thread(table.changed, self._revision)
        if revision == self._revision:
            return False
        self._revision, self.quotas = revision, quotas
        return True

    async def follow(self, table: QuotaTable, changed: Callable[[], object]) -> None:
        """Keep the limits up to date until cancelled, calling ``changed`` after each change.

        While the database is away those that were last read hold.
        """
        while True:
            await asyncio.sleep(REFRESH_SECONDS)
            try:
                if await self.refresh(table):
                    changed()
            except Error as error:
                if self._outage.failed():
                    log.error("quotas not read, the last ones hold", error=error.message)
                continue
            if (seconds := self._outage.over()) is not None:
                log.warning("quotas read again", after_seconds=round(seconds, 1))

    def _of(self, principal: Principal, now: float) -> Iterator[Use]:
        """What the caller's tenant and key use, under the limits of now."""
        if now - self._swept >= SWEEP_SECONDS:
            self._swept = now
            self._uses = {subject: use for subject, use in self._uses.items() if not use.idle(now)}
        for bound in self.quotas.bounds(principal.tenant, principal.key_id):
            use = self._uses.get(bound.subject) or self._uses.setdefault(bound.subject, Use(bound.subject))
            use.limit(bound.quota, now)
            yield use


_RATES: tuple[Limit, ...] = ("requests_per_minute", "tokens_per_minute")
