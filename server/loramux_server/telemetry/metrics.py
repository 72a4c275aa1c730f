"""Every Prometheus metric of the server, in one registry per server.

Names follow vLLM's where it has the metric. Labels come only from closed sets (methods, codes, states) or from
names that the registry of adapters already knows, and those are bounded on top. To add a metric, add it here.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Collection, Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.process_collector import ProcessCollector

from ..core.backend import EngineInfo, EngineStats
from ..core.errors import Code
from ..core.jobs import JobState, TrainEvent, TrainEventType
from ..core.observer import CallFinished, JobMoved, RequestFinished, RequestStarted
from ..core.types import Stack
from .engine import EngineCollector
from .labels import BoundedLabels
from .stacks import StackSeries

DURATION = (0.05, 0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 60.0, 120.0, 240.0, 600.0)
FIRST_TOKEN = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
BETWEEN_TOKENS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0)

CORRUPT_KINDS = ("adapter", "dataset", "checkpoint", "base")
MAX_TENANTS = 100
MAX_STACKS = 500
MAX_JOBS = 64


class Metrics:
    """The metrics, and what the services and the doors report to them.

    It is an observer of the services and may be called from the event loop only; scrapes come from another thread.
    """

    def __init__(self, version: str) -> None:
        # Prometheus has its own way to tell when a series began; these would double the page.
        disable_created_metrics()
        self.registry = CollectorRegistry()
        self._version = version
        self._tenants = BoundedLabels(MAX_TENANTS)
        self._losses: set[str] = set()
        self._device = "cpu"
        self._fetch: Callable[[], EngineStats | None] = lambda: None
        registry = self.registry
        self.requests = Counter(
            "loramux_requests_total", "Calls that ended, by status.", ["method", "code"], registry=registry
        )
        self.request_duration = Histogram(
            "loramux_request_duration_seconds", "Whole calls.", ["method"], buckets=DURATION, registry=registry
        )
        self.first_token = Histogram(
            "loramux_time_to_first_token_seconds",
            "From the call to its first token.",
            buckets=FIRST_TOKEN,
            registry=registry,
        )
        self.between_tokens = Histogram(
            "loramux_inter_token_latency_seconds",
            "Between the tokens of one choice.",
            buckets=BETWEEN_TOKENS,
            registry=registry,
        )
        by_adapter = ["tenant", "adapter"]
        self.prompt_tokens = Counter(
            "loramux_prompt_tokens_total", "Prompt tokens taken in.", by_adapter, registry=registry
        )
        self.generated_tokens = Counter(
            "loramux_generated_tokens_total", "Tokens generated.", by_adapter, registry=registry
        )
        self.quota_refusals = Counter(
            "loramux_quota_refusals_total", "Calls refused by a quota.", ["tenant", "limit"], registry=registry
        )
        self._stacks = StackSeries((self.prompt_tokens, self.generated_tokens), self._tenants, MAX_STACKS)
        self.jobs = Gauge("loramux_training_jobs", "Training jobs by state.", ["state"], registry=registry)
        for state in JobState:
            self.jobs.labels(state.value)
        self.jobs_ended = Counter(
            "loramux_training_jobs_ended_total",
            "Training jobs that came to their end, by its state.",
            ["state"],
            registry=registry,
        )
        for state in filter(lambda state: state.final, JobState):
            self.jobs_ended.labels(state.value)
        self.training_steps = Counter("loramux_training_steps_total", "Optimiser steps.", registry=registry)
        self.training_tokens = Counter("loramux_training_tokens_total", "Tokens trained on.", registry=registry)
        self.training_loss = Gauge(
            "loramux_training_loss", "Latest loss of each running job.", ["job"], registry=registry
        )
        self.corrupt_objects = Counter(
            "loramux_corrupt_objects_total",
            "Stored content that was found damaged or gone when it was read: adapter, dataset, checkpoint, base.",
            ["kind"],
            registry=registry,
        )
        for kind in CORRUPT_KINDS:
            self.corrupt_objects.labels(kind)
        self.build_info = Gauge(
            "loramux_build_info",
            "Always 1; the labels tell what runs here.",
            ["version", "python", "base", "fingerprint", "device", "dtype"],
            registry=registry,
        )
        self.registry.register(EngineCollector(lambda: self._fetch(), lambda: self._device))
        # After the collector: what it finds out by asking shows on the same page.
        self.engine_up = Gauge(
            "loramux_engine_up", "1 while the engine answers, 0 while it starts or is gone.", registry=registry
        )
        self.engine_restarts = Counter(
            "loramux_engine_restarts_total", "New starts of an engine that had died.", registry=registry
        )
        ProcessCollector(namespace="loramux", registry=registry)

    def engine_ready(self, info: EngineInfo, fetch: Callable[[], EngineStats | None]) -> None:
        """Name the base, and read the engine's stats through ``fetch`` from now on."""
        self._device = info.device
        self._fetch = fetch
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
        self._fetch = lambda: None
        self.engine_up.set(0)

    def certificate(self, expires: Callable[[], float]) -> Callable[[bool], None]:
        """Show when the server's certificate ends; gives what counts its renewals, True for those that are used."""
        gauge = Gauge(
            "loramux_tls_certificate_expiry_timestamp_seconds",
            "When the server's certificate ends, in seconds since the epoch.",
            registry=self.registry,
        )
        gauge.set_function(expires)
        reloads = Counter(
            "loramux_tls_reloads_total",
            "Changes of the TLS files, by whether they are used: ok, failed.",
            ["result"],
            registry=self.registry,
        )
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
        self.request_duration.labels(event.method).observe(event.seconds)

    def quota_refused(self, tenant: str, limit: str) -> None:
        """A call was refused by a quota. ``limit`` must be the name of one."""
        self.quota_refusals.labels(self._tenants(tenant), limit).inc()

    def corrupt_object(self, kind: str) -> None:
        """Stored content was found damaged. May be called from any thread."""
        self.corrupt_objects.labels(kind).inc()

    # The services' observer.

    def request_started(self, event: RequestStarted) -> None:
        self.prompt_tokens.labels(*self._stacks.started(event.tenant, event.stack)).inc(event.prompt_tokens)

    def answered(self, tenant: str, stack: Stack, seconds: float) -> None:
        self.first_token.observe(seconds)

    def tokens(self, tenant: str, stack: Stack, count: int, interval: float | None) -> None:
        self.generated_tokens.labels(*self._stacks.labels(tenant, stack)).inc(count)
        if interval is not None and count > 0:
            # Tokens that came together share the time since the ones before them.
            for _ in range(count):
                self.between_tokens.observe(interval / count)

    def request_finished(self, event: RequestFinished) -> None:
        self._stacks.finished(event.tenant, event.stack)

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
