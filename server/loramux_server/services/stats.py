"""What the server did in the last seconds, as far as a caller may know it."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace

from ..core.backend import EngineStats
from ..core.callers.principal import Principal, Scope
from ..core.errors import Error
from ..core.jobs import JobState
from ..store.records import SHARED, JobRecord, VersionRecord
from ..store.store import Store
from ..telemetry.activity import Activity, AdapterUse
from ..telemetry.losses import LossCurves
from .common.context import Context

MOST_TENANTS, MOST_ADAPTERS, MOST_JOBS = 100, 100, 50
AT_WORK = (JobState.RUNNING, JobState.EVALUATING, JobState.PUBLISHING)
WAITING = (JobState.QUEUED, JobState.PAUSED)
TIERS = ("device", "host", "disk")
"""Places of an adapter, the fastest first."""


@dataclass(frozen=True, slots=True)
class AdapterActivity:
    """An adapter version that is resident or was used. Versions of the same content are one."""

    use: AdapterUse
    digest: str
    tier: str
    """Empty: not told."""
    version: VersionRecord | None = None
    """None: it was deleted."""
    other_versions: int = 0
    pinned: bool = False


@dataclass(frozen=True, slots=True)
class JobActivity:
    """A job that has not ended, and its losses since the server started."""

    record: JobRecord
    losses: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class ServerStats:
    """What the server did in the last seconds. What is for operators is None or empty for others.

    ``engine`` is None while the engine restarts, too.
    """

    window_seconds: int
    own: Activity
    """Of the caller's tenant."""
    total: Activity | None = None
    tenants: list[Activity] = field(default_factory=list)
    """Those that had something, the busiest first, at most ``MOST_TENANTS``."""
    engine: EngineStats | None = None
    adapters: list[AdapterActivity] = field(default_factory=list)
    """The busiest first, at most ``MOST_ADAPTERS``."""
    jobs: list[JobActivity] = field(default_factory=list)
    """Those at work first, at most ``MOST_JOBS``."""
    jobs_by_state: dict[str, int] = field(default_factory=dict)


async def read_stats(context: Context, principal: Principal, window: int) -> ServerStats:
    """The last ``window`` seconds. Who has not the scope admin is told of the own tenant alone."""
    activity, store = context.activity, context.store
    stats = ServerStats(window, activity.of(principal.tenant, window))
    if Scope.ADMIN not in principal.scopes:  # what the others do is not for everybody
        used = activity.adapters(window, principal.tenant)
        adapters = await asyncio.to_thread(_adapters, store, used, {}, principal)
        if Scope.TRAIN not in principal.scopes:
            return replace(stats, adapters=adapters)
        jobs, counts = await asyncio.to_thread(_jobs, store, activity.losses, principal)
        return replace(stats, adapters=adapters, jobs=jobs, jobs_by_state=counts)
    engine = None
    with suppress(Error):  # it is starting again; everything else is known
        engine = await context.backend.stats()
    tiers = {} if engine is None else {d: tier for tier in reversed(TIERS) for d in engine.resident.get(tier, ())}
    used = dict.fromkeys(tiers, AdapterUse()) | activity.adapters(window)
    jobs, counts = await asyncio.to_thread(_jobs, store, activity.losses, None)
    return replace(
        stats,
        total=activity.of_all(window),
        tenants=activity.by_tenant(window, MOST_TENANTS),
        engine=engine,
        adapters=await asyncio.to_thread(_adapters, store, used, tiers, None),
        jobs=jobs,
        jobs_by_state=counts,
    )


def _adapters(
    store: Store, used: Mapping[str, AdapterUse], tiers: Mapping[str, str], viewer: Principal | None
) -> list[AdapterActivity]:
    """The busiest of ``used``, which is by digest; for a ``viewer`` those that it may know."""

    def busy(digest: str) -> tuple[float, ...]:
        use = used[digest]
        tokens = use.generated_tokens_per_second + use.prompt_tokens_per_second
        return (-tokens, -use.requests_running, TIERS.index(tiers.get(digest, TIERS[-1])))

    busiest = sorted(sorted(used), key=busy)[:MOST_ADAPTERS]
    versions: defaultdict[str, list[VersionRecord]] = defaultdict(list)
    with suppress(Error):  # the database is away; what the adapters do is known all the same
        for version in store.adapters.versions_with(busiest) if busiest else ():
            if viewer is None or (version.owner in (viewer.tenant, SHARED) and viewer.may_use(version.name)):
                versions[version.digest].append(version)
    return [
        AdapterActivity(
            use=used[digest],
            digest=digest,
            tier="" if viewer else tiers.get(digest, TIERS[-1]),
            version=next(iter(found), None),
            other_versions=max(len(found) - 1, 0),
            pinned=any(version.pinned for version in found),
        )
        for digest in busiest
        if (found := versions[digest]) or viewer is None
    ]


def _jobs(store: Store, losses: LossCurves, viewer: Principal | None) -> tuple[list[JobActivity], dict[str, int]]:
    """Jobs that have not ended, those at work first, and how many there are in each state."""
    found: list[JobRecord] = []
    counts: dict[str, int] = {}
    with suppress(Error):  # the database is away; what requests do is known all the same
        for states in (AT_WORK, WAITING):
            found += store.jobs.list(viewer, states=states, page_size=MOST_JOBS)[0]
        counts = {state.value: n for state, n in store.jobs.counts(viewer).items() if state in AT_WORK + WAITING}
    return [JobActivity(job, losses.of(job.id)) for job in found[:MOST_JOBS]], counts
