"""What callers use, counted against their quotas: calls and tokens of a minute, what is answered and what waits.

Everything is decided here, in memory. What servers of one database tell each other (``quota_follower.py``) changes
what is known to be in use.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from types import TracebackType
from typing import NamedTuple, Self

from ...core.callers.principal import Principal
from ...core.callers.quota import NO_QUOTAS, Limit, Quota, exceeded
from ...core.callers.quota_use import Counts, Level, Taken
from .buckets import Own, SharedBucket
from .methods import Method

SWEEP_SECONDS = 60.0
"""How often callers are forgotten that have nothing running and all of their minute left."""
RETRY_SECONDS = 1.0
"""What a caller is told to wait where something running must end first."""


@dataclass(frozen=True, slots=True)
class Rate:
    """What a caller has left of a rate, under the strictest of its limits."""

    limit: Limit
    size: int
    """What the limit grants in a minute."""
    left: int
    seconds: float
    """Until all of it is back."""


class Told(NamedTuple):
    """What was taken from a bucket, as it is told to other servers."""

    bucket: SharedBucket
    own: Own
    taken: Taken


class Use:
    """What one subject, a tenant or a key, uses now."""

    def __init__(self, subject: str) -> None:
        self.subject = subject
        self.quota = Quota()
        self.running = self.waiting = 0
        self._rates: dict[Limit, SharedBucket] = {}

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
                self._rates[limit] = SharedBucket(per_minute, now)
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

    def take(self, limit: Limit, amount: float, now: float) -> None:
        """Take from a rate, or give back (below 0)."""
        if (bucket := self._rates.get(limit)) is not None:
            bucket.take(amount, now)

    def rate(self, limit: Limit, now: float) -> Rate | None:
        """What is left of a rate; None: it is not limited."""
        if (bucket := self._rates.get(limit)) is None:
            return None
        used = bucket.used(now)
        left = max(0, math.floor(bucket.size - used + 1e-9))
        return Rate(limit, bucket.size, left, max(0.0, used) * 60.0 / max(bucket.size, 1))

    def idle(self, now: float) -> bool:
        """Whether nothing would be lost by forgetting it."""
        return not self.running and all(bucket.idle(now) for bucket in self._rates.values())

    def tell(self, now: float) -> Iterator[Told]:
        """What was taken since the last time, for other servers."""
        for rate, bucket in self._rates.items():
            if (own := bucket.tell()) is None:
                continue
            known = bucket.used(now)
            taken, least = own.sums(known, now)
            if taken or least:
                yield Told(bucket, own, Taken(self.subject, rate, bucket.size, taken, least, known))

    def hear(self, level: Level, now: float) -> None:
        """Take over what is in use over all servers."""
        if (bucket := self._rates.get(level.rate)) is not None:
            bucket.hear(max(0.0, level.used - level.age * bucket.size / 60.0), now)


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
            use.take("tokens_per_minute", self.spent - self._tokens, self._clock())


class QuotaMeter:
    """Counts what callers use. One instance serves all doors; all methods run on the event loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.quotas = NO_QUOTAS
        """The limits of now."""
        self.elsewhere: Mapping[str, Counts] = {}
        """Calls of subjects at other servers."""
        self._clock = clock
        self._uses: dict[str, Use] = {}
        self._swept = clock()

    def now(self) -> float:
        """Seconds on a monotonic clock."""
        return self._clock()

    def admit(self, principal: Principal, method: Method) -> Admission:
        """Count a call; RESOURCE_EXHAUSTED, nothing counted, where a limit of its tenant or key is reached."""
        if not method.counted:
            return Admission(())
        now = self.now()
        uses = tuple(self._of(principal, now))
        for use in uses:
            use.check_rate("requests_per_minute", 1, now)
            if method.generates:
                others = self.elsewhere.get(use.subject, _NONE)
                use.check_count("concurrent", use.running + others.running)
                use.check_count("queued", use.waiting + others.waiting)
        for use in uses:
            use.take("requests_per_minute", 1, now)
        return Admission(uses if method.generates else ())

    def reserve(self, principal: Principal, tokens: int) -> Reservation:
        """Take the most tokens that a request can need; RESOURCE_EXHAUSTED, nothing taken, where that is too many."""
        now = self.now()
        uses = tuple(self._of(principal, now))
        for use in uses:
            use.check_rate("tokens_per_minute", tokens, now)
        for use in uses:
            use.take("tokens_per_minute", tokens, now)
        return Reservation(uses, tokens, self.now)

    def rates(self, principal: Principal) -> list[Rate]:
        """What a caller has left of each rate that is limited for it."""
        now = self.now()
        uses = tuple(self._of(principal, now))
        found = ([rate for use in uses if (rate := use.rate(limit, now)) is not None] for limit in _RATES)
        return [min(rates, key=lambda rate: rate.left) for rates in found if rates]

    @property
    def subjects(self) -> int:
        """Tenants and keys of whom something is remembered."""
        return len(self._uses)

    def counts(self) -> dict[str, Counts]:
        """The calls of each subject with a limit of them."""
        return {
            use.subject: Counts(use.running, use.waiting)
            for use in self._uses.values()
            if use.running and (use.quota.concurrent is not None or use.quota.queued is not None)
        }

    def tell(self) -> list[Told]:
        """What was taken since the last time, for the others."""
        now = self.now()
        return [told for use in self._uses.values() for told in use.tell(now)]

    def put_back(self, told: Iterable[Told]) -> None:
        """What :meth:`tell` gave could not be told: it is with what comes next."""
        now = self.now()
        for each in told:
            each.bucket.put_back(each.own, now)

    def hear(self, levels: Iterable[Level]) -> None:
        """Take over what is in use over all servers."""
        now = self.now()
        self._sweep(now)
        for level in levels:
            quota = self.quotas.of(level.subject)
            if quota.of(level.rate) is not None:
                self._use(level.subject, quota, now).hear(level, now)

    def _of(self, principal: Principal, now: float) -> Iterator[Use]:
        """What the caller's tenant and key use, under the limits of now."""
        self._sweep(now)
        for bound in self.quotas.bounds(principal.tenant, principal.key_id):
            yield self._use(bound.subject, bound.quota, now)

    def _sweep(self, now: float) -> None:
        if now - self._swept >= SWEEP_SECONDS:
            self._swept = now
            self._uses = {subject: use for subject, use in self._uses.items() if not use.idle(now)}

    def _use(self, subject: str, quota: Quota, now: float) -> Use:
        use = self._uses.get(subject) or self._uses.setdefault(subject, Use(subject))
        use.limit(quota, now)
        return use


_NONE = Counts()
_RATES: tuple[Limit, ...] = ("requests_per_minute", "tokens_per_minute")
