"""What stands behind the door: the services once they may be called, and what is known about the server."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from ..core.backend import EngineInfo, EngineStats
from ..core.errors import Code, Error
from .adapters.service import AdapterService
from .common.info import Readiness, ServerInfo
from .common.limits import Limits
from .inference.service import GenerationService
from .jobs.service import TrainingService

START_RETRY = 5.0
"""Seconds after which to ask again while a slow step of the start is under way."""


@dataclass(frozen=True, slots=True)
class Services:
    """The use cases that the doors call."""

    generation: GenerationService
    adapters: AdapterService
    training: TrainingService


@dataclass(frozen=True, slots=True)
class Counts:
    """What a tenant has: adapter names that it may use, and jobs by state."""

    adapters: int = 0
    jobs: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Behind:
    """All that is there once the engine is up."""

    services: Services
    engine: EngineInfo
    limits: Limits
    has_chat_template: bool
    stats: Callable[[], Awaitable[EngineStats]]
    counts: Callable[[str], Awaitable[Counts]]


@dataclass(frozen=True, slots=True)
class Description:
    """The answer to "what are you?"."""

    info: ServerInfo
    limits: Limits | None = None
    has_chat_template: bool = False
    counts: Counts = Counts()


class Desk:
    """Hands the services to the servicers while the server is ready, and refuses before and after."""

    def __init__(self, version: str) -> None:
        self.readiness = Readiness.STARTING
        self.failure: Error | None = None
        """Why the server has failed, once it has."""
        self.behind: Behind | None = None
        self.doing = ""
        """The slow step of the start that is under way, with how far it is."""
        self._version = version
        self._started = time.monotonic()

    def open(self) -> Services:
        """The services. Raises UNAVAILABLE while the server starts, stops or has failed."""
        if self.readiness is Readiness.READY and self.behind is not None:
            return self.behind.services
        if self.readiness is Readiness.DRAINING:
            raise Error(Code.UNAVAILABLE, "the server is shutting down", reason="SHUTTING_DOWN", retry_after=1.0)
        if self.failure is not None:
            raise self.failure
        what = f"the server is not ready yet ({self.doing or self.readiness.value})"
        raise Error(Code.UNAVAILABLE, what, reason="NOT_READY", retry_after=START_RETRY if self.doing else 1.0)

    async def describe(self, tenant: str) -> Description:
        """What the server is now; also while it starts and stops."""
        behind, uptime = self.behind, time.monotonic() - self._started
        if behind is None:
            return Description(ServerInfo(self._version, self.readiness, uptime, None, None))
        try:
            stats = await behind.stats()
        except Error:  # the engine is starting again; everything else can still be told
            stats = None
        return Description(
            ServerInfo(self._version, self.readiness, uptime, behind.engine, stats),
            behind.limits,
            behind.has_chat_template,
            await behind.counts(tenant),
        )
