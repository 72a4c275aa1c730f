"""The Prometheus metrics of one server, in one registry: what its doors, services and engine report."""

from __future__ import annotations

import platform
from collections.abc import Callable, Collection, Iterable, Mapping

from prometheus_client import CollectorRegistry, disable_created_metrics
from prometheus_client.process_collector import ProcessCollector

from ...core.backend import EngineInfo, EngineStats
from ...core.errors import Code
from ...core.jobs import JobState, TrainEvent, TrainEventType
from ...core.observing.observer import CallFinished, JobMoved, NullObserver, RequestRefused, RequestStarted
from ...core.types import Stack
from . import catalog
from .engine import EngineCollector
from .log_lines import LogCollector
from .reading import EngineReader, Names, Reading
from .refusals import RefusalSeries
from .stacks import StackSeries
from .vllm import VllmCollector

CORRUPT_KINDS = ("adapter", "dataset", "checkpoint", "base")
MAX_JOBS = 64


class Metrics(NullObserver):
    """The metrics, and what the services and the doors report to them.

    It is an observer of the services and may be called from the event loop only; scrapes come from another thread.
    """

    def __init__(self, version: str) -> None:
        # Prometheus has its own way to tell when a series began; these would double the page.
        disable_created_metrics()
        self.registry = CollectorRegistry()
        self._version = version
        self._losses: set[str] = set()
        self._reader: EngineReader | None = None
        registry = self.registry
        self.requests = catalog.REQUESTS.register(registry)
        self.between_tokens = catalog.INTER_TOKEN.register(registry)
        self._refusals = RefusalSeries()
        registry.register(self._refusals)
        self._stacks = StackSeries()
        registry.register(self._stacks)
        self.jobs = catalog.JOBS.register(registry)
        for state in JobState:
            self.jobs.labels(state.value)
        self.jobs_ended = catalog.JOBS_ENDED.register(registry)
        for state in filter(lambda state: state.final, JobState):
            self.jobs_ended.labels(state.value)
        self.training_steps = catalog.TRAINING_STEPS.register(registry)
        self.training_tokens = catalog.TRAINING_TOKENS.register(registry)
        self.training_loss = catalog.TRAINING_LOSS.register(registry)
        self.corrupt_objects = catalog.CORRUPT_OBJECTS.register(registry)
        for kind in CORRUPT_KINDS:
            self.corrupt_objects.labels(kind)
        self.build_info = catalog.BUILD_INFO.register(registry)
        registry.register(EngineCollector(self._read))
        # After the collector: what it finds out by asking shows on the same page.
        self.engine_up = catalog.ENGINE_UP.register(registry)
        self.engine_restarts = catalog.ENGINE_RESTARTS.register(registry)
        registry.register(LogCollector())
        ProcessCollector(namespace="loramux", registry=registry)
        self.for_routers = CollectorRegistry()
        """The gauges that routers read, on a page of their own."""
        self.for_routers.register(VllmCollector(self._read))

    def engine_ready(
        self,
        info: EngineInfo,
        fetch: Callable[[], EngineStats | None],
        look_up: Callable[[Collection[str]], Names] = lambda digests: {},
    ) -> None:
        """Name the base, and read the engine's stats and the names of its adapters through these from now on."""
        self._reader = EngineReader(info, fetch, look_up)
        self.engine_up.set(1)
        self.build_info.labels(
            self._version,
            platform.python_version(),
            info.base_name,
            info.base_fingerprint,
            info.device,
            info.dtype,
        ).set(1)

    def engine_moved(self, up: bool) -> None:
        """The engine died, or was started again."""
        self.engine_up.set(up)
        if up:
            self.engine_restarts.inc()

    def engine_gone(self) -> None:
        """Stop reading the engine's stats."""
        self._reader = None
        self.engine_up.set(0)

    def _read(self) -> Reading | None:
        reader = self._reader
        return None if reader is None else reader.read()

    def certificate(self, expires: Callable[[], float]) -> Callable[[bool], None]:
        """Show when the server's certificate ends; gives what counts its renewals, True for those that are used."""
        catalog.CERTIFICATE_EXPIRY.register(self.registry).set_function(expires)
        reloads = catalog.TLS_RELOADS.register(self.registry)
        results = {True: reloads.labels("ok"), False: reloads.labels("failed")}
        return lambda used: results[used].inc()

    def seed_jobs(self, counts: Mapping[JobState, int]) -> None:
        """Start from the jobs that the store already has."""
        for state in JobState:
            self.jobs.labels(state.value).set(counts.get(state, 0))

    def seed_methods(self, methods: Iterable[str]) -> None:
        """Begin at 0 with what alerts look for: Prometheus sees no increase in a series that begins at 1."""
        for method in methods:
            self.requests.labels(method, Code.INTERNAL.name)

    def call_finished(self, event: CallFinished) -> None:
        """A call of a door ended. Its method must be the name of one that exists."""
        self.requests.labels(event.method, event.code).inc()
        tenant, stack = ("", None) if event.call is None else (event.call.principal.tenant, event.call.subject.stack)
        self._stacks.observe(catalog.REQUEST_DURATION, tenant, stack, event.seconds, event.method)

    def quota_refused(self, tenant: str, limit: str) -> None:
        """A call was refused by a quota. ``limit`` must be the name of one."""
        self._refusals.refused(tenant, limit)

    def request_refused(self, event: RequestRefused) -> None:
        """Not counted: it was no call of any method."""

    def corrupt_object(self, kind: str) -> None:
        """Stored content was found damaged. May be called from any thread."""
        self.corrupt_objects.labels(kind).inc()

    # The services' observer.

    def request_started(self, event: RequestStarted) -> None:
        self._stacks.used(event.tenant, event.stack)
        self._stacks.add(catalog.PROMPT_TOKENS, event.tenant, event.stack, event.prompt_tokens)

    def answered(self, tenant: str, stack: Stack, seconds: float) -> None:
        self._stacks.observe(catalog.FIRST_TOKENS, tenant, stack, seconds)

    def tokens(self, tenant: str, stack: Stack, count: int, interval: float | None) -> None:
        self._stacks.add(catalog.GENERATED_TOKENS, tenant, stack, count)
        if interval is not None and count > 0:
            # Tokens that came together share the time since the ones before them.
            for _ in range(count):
                self.between_tokens.observe(interval / count)

    def job_event(self, job_id: str, name: str, tenant: str, event: TrainEvent) -> None:
        if event.type is TrainEventType.CHECKPOINT_LOST:
            self.corrupt_object("checkpoint")
        if event.type is not TrainEventType.STEP:
            return
        self.training_steps.inc()
        self.training_tokens.inc(event.metrics.get("tokens", 0))
        if "loss" in event.metrics and (job_id in self._losses or len(self._losses) < MAX_JOBS):
            self._losses.add(job_id)
            self.training_loss.labels(job_id).set(event.metrics["loss"])

    def job_moved(self, event: JobMoved) -> None:
        if event.old is not None:
            self.jobs.labels(event.old.value).dec()
        self.jobs.labels(event.new.value).inc()
        if event.new.final:
            self.jobs_ended.labels(event.new.value).inc()
        if event.new.final and event.job_id in self._losses:
            self._losses.discard(event.job_id)
            self.training_loss.remove(event.job_id)

    def adapter_deleted(self, name: str, keeps: Collection[str]) -> None:
        self._stacks.adapter_deleted(name, keeps)
