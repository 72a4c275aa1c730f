"""The server as one object: what it is made of, the order in which it starts, and the order in which it stops."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import fields, replace
from typing import Any

from loramux import __version__

from ..config import Settings
from ..config.limits import LimitSettings
from ..core.backend import Backend, EngineInfo, EnginePhase, EngineState, GenerateCommand
from ..core.callers.principal import SERVER_TENANT
from ..core.errors import Error
from ..core.observing.observer import CallSinks, Observers
from ..core.types import SamplingParams
from ..engine.transport.process import ProcessBackend
from ..host.resources import memory_share
from ..http.exchanges.pages import Pages
from ..http.server import HttpServer
from ..rpc.server import RpcServer
from ..services.access.access import Access
from ..services.access.audit import CallAudit
from ..services.access.exposure import check_metrics_listen
from ..services.access.methods import METHODS, short_name
from ..services.access.quota_follower import QuotaFollower
from ..services.access.quotas import QuotaMeter
from ..services.adapters.checked_backend import CheckedBackend
from ..services.adapters.collector import Collector
from ..services.adapters.service import AdapterService
from ..services.availability import Availability, Readiness, Services
from ..services.common.calls import Calls, GenerationLimit
from ..services.common.context import Context
from ..services.common.limits import Limits
from ..services.inference.service import GenerationService
from ..services.jobs.board import JobBoard
from ..services.jobs.running.runner import JobRunner
from ..services.jobs.service import TrainingService
from ..services.jobs.uploads import UploadService
from ..services.usage.recorder import UsageRecorder
from ..services.usage.service import UsageService
from ..store.blobs.places import CACHE_BYTES
from ..store.damage import Kind
from ..store.store import Store
from ..telemetry.activity import ActivityRecorder
from ..telemetry.logs import get_logger
from ..telemetry.logs.jobs import JobLog
from ..telemetry.logs.requests import RequestLog
from ..telemetry.metrics import Metrics
from ..text import TextTokenizer
from .announce import Announcer, Ready, Silent
from .audit import audit_log
from .door import Door
from .door_limits import http_limits, rpc_limits
from .identity import Identity
from .memory_watch import MemoryWatch
from .replicas import ray_backend
from .scrape import names_from_thread, stats_from_thread
from .tls import metrics_endpoint, metrics_page, open_certificate
from .tracing import open_tracing

logger = get_logger(__name__)


class App:
    """A server. ``start`` returns when it is ready; ``drain``, then ``stop``, end it.

    ``backend`` is the engine; None builds the one that the settings ask for. Raises ``Error`` for a certificate or
    a token that cannot be used.
    """

    def __init__(self, settings: Settings, backend: Backend | None = None, announcer: Announcer | None = None) -> None:
        self.settings = settings
        self._say = announcer or Silent()
        self._backend = backend
        self.availability = Availability(__version__)
        self._metrics = Metrics(__version__)
        self._metrics.seed_methods(map(short_name, METHODS))
        self._activity = ActivityRecorder()
        self._request_log = RequestLog(
            every=settings.log.requests == "on",
            slow_seconds=settings.log.slow_seconds,
            addresses=settings.log.client_address == "on",
        )
        self._tracing = open_tracing(settings)
        certificate = open_certificate(settings.tls, self._metrics)
        self._meter = QuotaMeter()
        # Which device it will be is not known yet; the engine's own queue is as long as the settings say.
        most = (settings.most_running + settings.max_queue) * settings.replica_range.most
        limit, self._access = GenerationLimit(most), Access(meter=self._meter)
        self._audit_log = audit_log(settings)
        self._audit = CallAudit(self._audit_log) if self._audit_log else None

        self._calls: list[Calls] = []

        def calls() -> Calls:
            tracer = None if self._tracing is None else self._tracing.calls
            sinks = CallSinks(self._metrics, self._request_log)
            self._calls.append(Calls(sinks, limit, self._access, self._audit, tracer))
            return self._calls[-1]

        self.doors: list[Door] = [
            RpcServer(
                self.availability,
                calls(),
                settings.listen,
                certificate=certificate,
                reflects=self._reflects,
                limits=rpc_limits(settings),
            ),
        ]
        """What clients speak to. The first one is gRPC."""
        if settings.http_listen is not None:
            self.doors.append(
                HttpServer(
                    self.availability,
                    calls(),
                    settings.http_listen,
                    certificate=certificate,
                    limits=http_limits(settings),
                    console=settings.console == "on",
                    metrics=metrics_page(settings, self._metrics),
                    pages=Pages(settings.http_cors_origin, (settings.http_listen.host, *settings.http_allowed_host)),
                    takes_everybody=self._takes_everybody,
                )
            )
        self._endpoint = metrics_endpoint(settings, self._metrics, certificate)
        self._store: Store | None = None
        self._identity: Identity | None = None
        self._quotas: QuotaFollower | None = None
        self._usage: UsageRecorder | None = None
        self._jobs: asyncio.Task[None] | None = None
        self._background: list[asyncio.Task[None]] = []
        self._memory_watch = MemoryWatch(memory_share, settings.max_memory_share, self._health_changed)
        self._health: asyncio.Task[None] | None = None
        self._engine_started = False
        self._engine_away = False
        self._failed = asyncio.Event()

    @property
    def address(self) -> str:
        """``host:port`` of the gRPC API."""
        return str(self.doors[0].address)

    @property
    def metrics_port(self) -> int | None:
        """Port of the metrics; None: they are off."""
        return self._endpoint.port if self._endpoint else None

    def _reflects(self) -> bool:
        """Whether strangers may ask which services there are."""
        if self.settings.reflection == "auto":
            return self._takes_everybody()
        return self.settings.reflection == "on"

    def _takes_everybody(self) -> bool:
        """Whether whoever reaches the server may call, just now."""
        return self._identity is not None and self._identity.anyone

    @property
    def readiness(self) -> Readiness:
        """How far its life has come."""
        return self.availability.readiness

    async def start(self) -> None:
        """Open everything, load the base, resume interrupted jobs. Raises ``Error`` with what to do about it.

        What can fail at once (state directory, ports) is tried before the base is loaded. After a failure, ``stop``.
        """
        settings = self.settings
        self._store = store = await asyncio.to_thread(_open_store, settings)
        check_metrics_listen(settings)
        if self._audit_log is not None:
            await asyncio.to_thread(self._audit_log.open)
        self._identity = identity = await Identity.open(settings, store.keys, self._audit_log)
        self._say.say(identity.summary)
        self._access.authenticator = identity.authenticator
        identity.keys.on_revoked = self._end_calls
        if self._endpoint is not None:
            self._endpoint.start()
        self._quotas = quotas = QuotaFollower(self._meter, store.quotas, store.quota_use)
        await quotas.refresh()
        for door in self.doors:
            await door.start()
        self.availability.readiness = Readiness.LOADING
        self._backend = backend = self._backend or self._build_engine(store)
        backend.subscribe(self._engine_changed)
        self._engine_started = True
        info = await backend.start()
        self.availability.step = ""
        self._say.progress("reading the tokenizer")
        text = await asyncio.to_thread(TextTokenizer.load, info.tokenizer_path)
        loop = asyncio.get_running_loop()
        self._metrics.engine_ready(info, stats_from_thread(backend, loop), names_from_thread(store, loop))
        await self._open_services(backend, store, info, text)
        addresses = [door.address for door in self.doors]
        self._say.ready(Ready(settings, addresses, self.metrics_port, info, await backend.stats()))

    async def watch(self) -> None:
        """Run until the engine is given up, and raise why: nothing but another start can help then."""
        await self._failed.wait()
        assert self.availability.failure is not None
        raise self.availability.failure

    async def drain(self) -> None:
        """Take nothing new, say so in health, and let what runs finish within the settings' time."""
        self.availability.readiness = Readiness.DRAINING
        # First, so that the requests get all of the engine; jobs go on at the next start.
        await self._stop_jobs()
        running = sum(door.running for door in self.doors)
        if running:
            self._say.say(f"Finishing {running} running call(s), {self.settings.drain_timeout:g} s at most.")
        if left := await self._drain_doors(self.settings.drain_timeout):
            logger.warning("calls ended by the drain timeout", calls=left)

    async def stop(self) -> None:
        """Close everything, in the opposite order. Fine after a failed ``start``, and twice."""
        self.availability.readiness = Readiness.DRAINING
        await self._stop_jobs()
        while self._background:
            task = self._background.pop()
            task.cancel()
            await asyncio.wait((task,))
        await self._drain_doors(0)
        for door in reversed(self.doors):
            await door.stop()
        self._request_log.close()
        if self._audit is not None and self._store is not None:
            await self._audit.close()
        quotas, self._quotas = self._quotas, None
        if quotas is not None:
            await quotas.leave()
        usage, self._usage = self._usage, None
        if usage is not None:
            await usage.close()
        self._metrics.engine_gone()
        if self._endpoint is not None:
            await asyncio.to_thread(self._endpoint.stop)
        if self._backend is not None and self._engine_started:
            self._engine_started = False
            await self._backend.close()
        if self._identity is not None:
            await self._identity.close()
        if self._tracing is not None:
            await self._tracing.close()
        store, self._store = self._store, None
        if store is not None:
            await asyncio.to_thread(store.close)

    def abandon(self) -> None:
        """End the engine's process at once, before this one ends without a ``stop``."""
        if isinstance(self._backend, ProcessBackend):
            self._backend.link.kill()

    def _end_calls(self, key_id: str) -> None:
        """End the calls of a key that was revoked."""
        for calls in self._calls:
            calls.fail_key(key_id)

    def _build_engine(self, store: Store) -> Backend:
        engine = replace(self.settings.engine(), blobs=str(store.blobs.reader.folder))
        if self.settings.backend == "ray":
            return ray_backend(self.settings, engine, store)
        # Brings torch into the process, so not before everything that can fail without it has been tried.
        from ..engine_factory import make_backend

        return make_backend(engine)

    def _progress(self, step: str, fraction: float | None) -> None:
        """A slow step of the engine's start: callers that are refused meanwhile get it as the reason."""
        self.availability.step = step if fraction is None else f"{step}, {fraction:.0%}"
        self._say.progress(step, fraction)

    def _engine_changed(self, state: EngineState) -> None:
        """Tell callers of a start's progress, operators and load balancers when the engine is away and back."""
        match state.phase:
            case EnginePhase.FAILED:
                self.availability.readiness, self.availability.failure = Readiness.FAILED, state.error
                self._failed.set()
            case _ if state.step:
                self._progress(state.step, state.fraction)
            case EnginePhase.RESTARTING:
                self._engine_away = True
                self._engine_moved(up=False)
            case EnginePhase.READY if self._engine_away:
                self._engine_away = False
                self._engine_moved(up=True)

    def _engine_moved(self, up: bool) -> None:
        self._metrics.engine_moved(up)
        self._health_changed(load_pinned=up)

    def _health_changed(self, *, load_pinned: bool = False) -> None:
        if self.availability.readiness is Readiness.READY:
            self._health = asyncio.create_task(self._tell_health(load_pinned))

    async def _tell_health(self, load_pinned: bool) -> None:
        for door in self.doors:
            await door.set_serving(not self._engine_away and not self._memory_watch.full)
        if load_pinned and self.availability.services is not None:
            with suppress(Error):  # gone again already; the next start loads them
                await self.availability.services.adapters.load_pinned()

    async def _open_services(self, backend: Backend, store: Store, info: EngineInfo, text: TextTokenizer) -> None:
        limits, metrics = limits_from(self.settings), self._metrics
        store.damage.listener = metrics.corrupt_object
        if info.base_damage:
            store.damage.found(Kind.BASE)
        backend = CheckedBackend(backend, store.adapters.files)
        context = Context(store, text, info, limits, backend, self._meter, self._activity, self._audit_log)
        self._usage = usage = UsageRecorder(store.usage)
        spans = () if self._tracing is None else self._tracing.observers
        observer = Observers(metrics, self._activity, usage, self._request_log, JobLog(), *spans)
        board = JobBoard(store, observer)
        adapters = AdapterService(context, observer=observer)
        training = TrainingService(context, board)
        services = Services(
            generation=GenerationService(
                context, observer, SamplingParams(max_tokens=self.settings.default_max_tokens)
            ),
            adapters=adapters,
            training=training,
            uploads=UploadService(context, training),
            usage=UsageService(context, usage),
            lora_root=self.settings.lora_root,
        )
        self.availability.context, self.availability.services = context, services
        await adapters.load_pinned()
        self.availability.readiness = Readiness.WARMING
        self._say.progress("running a first request")
        await warm_up(backend, text)
        runner = JobRunner(
            context,
            board,
            max_jobs=self.settings.max_training_jobs,
            checkpoint_seconds=self.settings.training.checkpoint_seconds,
        )
        if interrupted := await runner.recover():
            self._say.progress(f"resuming {interrupted} interrupted training job(s)")
        metrics.seed_jobs(await asyncio.to_thread(store.jobs.counts))
        assert self._quotas is not None
        self._jobs = _task("jobs", runner.run())
        self._background += [
            _task("collector", Collector(store, context.unused).run()),
            _task("uploads", services.uploads.run()),
            _task("quotas", self._quotas.run(board.queued.set)),
            _task("memory", self._memory_watch.run()),
            _task("usage", usage.follow(self.settings.usage_flush_seconds)),
        ]
        self.availability.readiness = Readiness.READY
        await self._tell_health(load_pinned=False)

    async def _drain_doors(self, timeout: float) -> int:
        """Let the calls of all doors finish; gives how many were ended at the timeout."""
        return sum(await asyncio.gather(*(door.drain(timeout) for door in self.doors)))

    async def _stop_jobs(self) -> None:
        jobs, self._jobs = self._jobs, None
        if jobs is not None:
            jobs.cancel()
            await asyncio.wait((jobs,))


def _open_store(settings: Settings) -> Store:
    urls = (url.get_secret_value() if url else None for url in (settings.database_url, settings.blobs_url))
    return Store.open(
        settings.state_dir,
        *urls,
        cache_bytes=settings.blobs_cache or CACHE_BYTES,
        engine_here=settings.replica_dir is None,
        job_events=settings.max_job_events,
    )


def limits_from(settings: Settings) -> Limits:
    """What one request may ask for, as the operator chose it. Limits are named as their settings are."""
    training = settings.training
    longest = {} if training.max_row_tokens is None else {"max_row_tokens": training.max_row_tokens}
    names = {field.name.replace("_bytes", "_size"): field.name for field in fields(Limits)}
    return Limits(
        **{names[name]: getattr(settings, name) for name in LimitSettings.model_fields if name in names},
        max_dataset_bytes=int(training.max_dataset_size),
        max_dataset_rows=training.max_dataset_rows,
        max_activation_bytes=training.activation_memory,
        **longest,
    )


def _task(name: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """Work that goes on until it is cancelled; a defect that ends it is logged."""
    task = asyncio.create_task(work, name=name)
    task.add_done_callback(_report_defect)
    return task


def _report_defect(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        what = {
            "jobs": "training jobs are run",
            "collector": "unused files are removed",
            "uploads": "uploads expire",
            "quotas": "quotas are followed",
            "memory": "memory is watched",
            "usage": "usage is written",
        }[task.get_name()]
        logger.critical(f"no more {what} until the server is started again", exc_info=error)


async def warm_up(backend: Backend, text: TextTokenizer) -> None:
    """One real generation, so that the first caller waits for no lazy set-up and a broken base is found now."""
    ids = tuple(text.encode("Hello"))
    id = f"warm-up-{uuid.uuid4().hex}"  # several fronts may start at once over the same replicas
    command = GenerateCommand(id, prompt_ids=ids, sampling=SamplingParams(max_tokens=2), tenant=SERVER_TENANT)
    async for event in backend.generate(command):
        if event.error:
            logger.error("the first request failed", error=event.error)
