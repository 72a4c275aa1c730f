"""Whether the server takes calls, and what it says about itself meanwhile."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from ..core.backend import EngineInfo, EngineStats
from ..core.callers.principal import Principal, Scope
from ..core.errors import Code, Error, invalid_field, shutting_down
from ..store.store import Store
from ..telemetry.activity import LONGEST
from .adapters.folders import FolderService
from .adapters.service import AdapterService
from .common.context import Context
from .common.limits import Limits
from .inference.service import GenerationService
from .jobs.service import TrainingService
from .jobs.uploads import UploadService
from .stats import ServerStats, read_stats
from .usage.service import UsageService

WINDOW = 10
"""Seconds that stats look back unless one says otherwise."""
START_RETRY = 5.0
"""Seconds after which to ask again while a slow step of the start is under way."""


class Readiness(StrEnum):
    """States of the server, in order of life."""

    STARTING = "starting"
    LOADING = "loading"
    WARMING = "warming"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Services:
    """The use cases that the doors call."""

    generation: GenerationService
    adapters: AdapterService
    training: TrainingService
    uploads: UploadService
    usage: UsageService
    lora_root: Path | None = None
    """Below it are the folders that may be loaded."""

    @property
    def folders(self) -> FolderService:
        """Adapters from folders of this machine."""
        return FolderService(self.adapters, self.lora_root)


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """What the server is and has. What is not known yet is None or empty.

    ``stats`` are None while the engine restarts, and for callers without the scope ``admin``.
    """

    version: str
    readiness: Readiness
    uptime: float
    """Seconds."""
    engine: EngineInfo | None = None
    stats: EngineStats | None = None
    limits: Limits | None = None
    has_chat_template: bool = False
    adapters: int = 0
    """Adapter names that the caller may use."""
    jobs: dict[str, int] = field(default_factory=dict)
    """The caller's jobs by state."""


class Availability:
    """How far the server's life has come: doors get the services while it is ready, and a refusal before and after.

    The app moves ``readiness`` on; once the engine is up it sets ``context`` and ``services``.
    """

    def __init__(self, version: str) -> None:
        self.readiness = Readiness.STARTING
        self.step = ""
        """The slow step of the start that is under way, with how far it is."""
        self.failure: Error | None = None
        """Why the server has failed, once it has."""
        self.context: Context | None = None
        self.services: Services | None = None
        self._version = version
        self._started = time.monotonic()

    def open(self) -> Services:
        """The services. Raises UNAVAILABLE while the server starts, stops or has failed."""
        if self.readiness is Readiness.READY and self.services is not None:
            return self.services
        if self.readiness is Readiness.DRAINING:
            raise shutting_down()
        if self.failure is not None:
            raise self.failure
        what = f"the server is not ready yet ({self.step or self.readiness.value})"
        raise Error(Code.UNAVAILABLE, what, reason="NOT_READY", retry_after=START_RETRY if self.step else 1.0)

    def open_context(self) -> Context:
        """What the services share. Raises as :meth:`open` does."""
        self.open()
        assert self.context is not None
        return self.context

    async def describe(self, principal: Principal) -> ServerInfo:
        """What the server is now; also while it starts and stops."""
        uptime, context = time.monotonic() - self._started, self.context
        if context is None:
            return ServerInfo(self._version, self.readiness, uptime)
        stats = None
        if Scope.ADMIN in principal.scopes:  # how busy the server is tells of other tenants
            with suppress(Error):  # the engine is starting again; everything else is known
                stats = await context.backend.stats()
        adapters, jobs = await asyncio.to_thread(_count, context.store, principal)
        return ServerInfo(
            version=self._version,
            readiness=self.readiness,
            uptime=uptime,
            engine=context.info,
            stats=stats,
            limits=context.limits,
            has_chat_template=context.text.chat_template is not None,
            adapters=adapters,
            jobs=jobs,
        )

    async def stats(self, principal: Principal, window_seconds: int) -> ServerStats:
        """What the server did in the last seconds; 0: ``WINDOW`` of them.

        Raises INVALID_ARGUMENT for a window that is out of bounds, UNAVAILABLE before the engine is up.
        """
        if not 0 <= window_seconds <= LONGEST:
            raise invalid_field("window_seconds", f"is {window_seconds}; it must be between 0 and {LONGEST}")
        if (context := self.context) is None:
            self.open()
            raise AssertionError("unreachable: services are open only with a context")
        return await read_stats(context, principal, window_seconds or WINDOW)


def _count(store: Store, principal: Principal) -> tuple[int, dict[str, int]]:
    """How many adapters the caller may use, and its jobs by state."""
    jobs = {state.value: number for state, number in store.jobs.counts(principal).items()}
    return store.adapters.count(principal), jobs
