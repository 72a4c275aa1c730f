"""What the server did in the last seconds, by tenant and adapter: for whoever watches it without Prometheus."""

from __future__ import annotations

import math
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from ..core.jobs import TrainEvent
from ..core.observing.observer import JobMoved, NullObserver, RequestFinished, RequestStarted
from ..core.types import Stack
from .losses import LossCurves

LONGEST = 60
"""Seconds that are remembered."""
STEP = math.log(1.05)
"""Latencies are counted in bins, each 5 % longer than the one before: so far off is a percentile at most."""
SHORTEST = 1e-4


@dataclass(frozen=True, slots=True)
class Latency:
    """How long something took; seconds, 0 where nothing happened."""

    count: int = 0
    p50_seconds: float = 0.0
    p90_seconds: float = 0.0
    p99_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Activity:
    """What was done for one tenant, or for all of them where ``tenant`` is empty. Rates are means over the window."""

    tenant: str = ""
    requests_running: int = 0
    """Generations, scores and embeddings that are being answered, those that wait included."""
    requests_per_second: float = 0.0
    prompt_tokens_per_second: float = 0.0
    generated_tokens_per_second: float = 0.0
    time_to_first_token: Latency = Latency()
    inter_token_latency: Latency = Latency()


@dataclass(frozen=True, slots=True)
class AdapterUse:
    """What was done with one adapter version, alone or in a stack. Rates are means over the window."""

    requests_running: int = 0
    requests_per_second: float = 0.0
    prompt_tokens_per_second: float = 0.0
    generated_tokens_per_second: float = 0.0


@dataclass(slots=True)
class _Counts:
    """Of the requests with one adapter within a second."""

    requests: int = 0
    prompt: int = 0
    generated: int = 0


@dataclass(slots=True)
class _Second:
    """What happened within one second of the clock."""

    at: int
    requests: int = 0
    prompt: int = 0
    generated: int = 0
    first: Counter[int] = field(default_factory=Counter)
    between: Counter[int] = field(default_factory=Counter)
    adapters: defaultdict[str, _Counts] = field(default_factory=lambda: defaultdict(_Counts))
    """By digest."""


@dataclass(slots=True)
class _Tenant:
    running: int = 0
    using: Counter[str] = field(default_factory=Counter)
    """Requests that run with an adapter, by digest."""
    seconds: deque[_Second] = field(default_factory=deque)


class ActivityRecorder(NullObserver):
    """Remembers the last minute. Like every observer it is called on the event loop alone."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._tenants: dict[str, _Tenant] = {}
        self._swept = clock()
        self.losses = LossCurves()

    def request_started(self, event: RequestStarted) -> None:
        second = self._second(event.tenant)
        second.requests += 1
        second.prompt += event.prompt_tokens
        tenant = self._tenants[event.tenant]
        tenant.running += 1
        for entry in event.stack.entries:
            counts = second.adapters[entry.adapter.digest]
            counts.requests += 1
            counts.prompt += event.prompt_tokens
            tenant.using[entry.adapter.digest] += 1

    def answered(self, tenant: str, stack: Stack, seconds: float) -> None:
        self._second(tenant).first[_bin(seconds)] += 1

    def tokens(self, tenant: str, stack: Stack, count: int, interval: float | None) -> None:
        second = self._second(tenant)
        second.generated += count
        for entry in stack.entries:
            second.adapters[entry.adapter.digest].generated += count
        if interval is not None and count > 0:
            second.between[_bin(interval / count)] += count

    def request_finished(self, event: RequestFinished) -> None:
        self._second(event.tenant)
        tenant = self._tenants[event.tenant]
        tenant.running -= 1
        for entry in event.stack.entries:
            tenant.using[entry.adapter.digest] -= 1
            if not tenant.using[entry.adapter.digest]:
                del tenant.using[entry.adapter.digest]

    def job_event(self, job_id: str, name: str, tenant: str, event: TrainEvent) -> None:
        self.losses.job_event(job_id, event)

    def job_moved(self, event: JobMoved) -> None:
        self.losses.job_moved(event.job_id, event.new)

    def of(self, tenant: str, window: int) -> Activity:
        """What one tenant had in the last ``window`` seconds, at most ``LONGEST``."""
        known = self._tenants.get(tenant)
        return self._sum(tenant, () if known is None else (known,), window)

    def of_all(self, window: int) -> Activity:
        """What all tenants had together."""
        return self._sum("", self._tenants.values(), window)

    def by_tenant(self, window: int, most: int) -> list[Activity]:
        """Tenants that had something, the busiest first, at most so many."""
        found = (self._sum(name, (known,), window) for name, known in self._tenants.items())
        busy = [each for each in found if each.requests_running or each.requests_per_second or _tokens(each)]
        return sorted(busy, key=lambda each: (-_tokens(each), -each.requests_running, each.tenant))[:most]

    def adapters(self, window: int, tenant: str | None = None) -> dict[str, AdapterUse]:
        """What was done with each adapter version, by digest: for one tenant, or for all."""
        end = int(self._clock())
        found: defaultdict[str, _Counts] = defaultdict(_Counts)
        running: Counter[str] = Counter()
        tenants = self._tenants.values() if tenant is None else filter(None, [self._tenants.get(tenant)])
        for known in tenants:
            running.update(known.using)  # not +=, which looks at all that there is each time
            for second in known.seconds:
                if end - window <= second.at < end:
                    for digest, counts in second.adapters.items():
                        total = found[digest]
                        total.requests += counts.requests
                        total.prompt += counts.prompt
                        total.generated += counts.generated
        return {
            digest: AdapterUse(
                running[digest],
                found[digest].requests / window,
                found[digest].prompt / window,
                found[digest].generated / window,
            )
            for digest in [*found, *(running.keys() - found.keys())]
        }

    def _second(self, tenant: str) -> _Second:
        """The current second of a tenant."""
        now = int(self._clock())
        known = self._tenants.get(tenant)
        if known is None:
            self._sweep(now)
            known = self._tenants.setdefault(tenant, _Tenant())
        seconds = known.seconds
        if not seconds or seconds[-1].at != now:
            seconds.append(_Second(now))
            while seconds[0].at < now - LONGEST:
                seconds.popleft()
        return seconds[-1]

    def _sweep(self, now: int) -> None:
        """Forget tenants of whom nothing is left, at most once a second."""
        if now != self._swept:
            self._swept = now
            self._tenants = {
                name: known
                for name, known in self._tenants.items()
                if known.running or (known.seconds and known.seconds[-1].at >= now - LONGEST)
            }

    def _sum(self, tenant: str, tenants: Iterable[_Tenant], window: int) -> Activity:
        """The whole seconds before the current one, which is not over."""
        end = int(self._clock())
        running = 0
        total = _Second(end)
        for known in tenants:
            running += known.running
            for second in known.seconds:
                if end - window <= second.at < end:
                    total.requests += second.requests
                    total.prompt += second.prompt
                    total.generated += second.generated
                    total.first += second.first
                    total.between += second.between
        return Activity(
            tenant=tenant,
            requests_running=running,
            requests_per_second=total.requests / window,
            prompt_tokens_per_second=total.prompt / window,
            generated_tokens_per_second=total.generated / window,
            time_to_first_token=_latency(total.first),
            inter_token_latency=_latency(total.between),
        )


def _tokens(activity: Activity) -> float:
    return activity.generated_tokens_per_second + activity.prompt_tokens_per_second


def _bin(seconds: float) -> int:
    return round(math.log(max(seconds, SHORTEST)) / STEP)


def _latency(bins: Counter[int]) -> Latency:
    count = bins.total()
    if not count:
        return Latency()
    ordered = sorted(bins.items())

    def percentile(share: float) -> float:
        left = math.ceil(share * count)
        for number, times in ordered:
            left -= times
            if left <= 0:
                return math.exp(number * STEP)
        raise AssertionError("unreachable: the shares are at most 1")

    return Latency(count, percentile(0.5), percentile(0.9), percentile(0.99))
