"""What every service works with."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from ...core.backend import Backend, EngineInfo
from ...store.store import Store
from ...telemetry.activity import ActivityRecorder
from ...telemetry.audit import AuditLog
from ...text import TextTokenizer
from ..access.quotas import QuotaMeter
from .limits import Limits
from .stacks import StackResolver


@dataclass(frozen=True, slots=True)
class Context:
    """The parts that the app puts together once, when the engine is up, and hands to all services."""

    store: Store
    text: TextTokenizer
    info: EngineInfo
    """The base that ``backend`` serves."""
    limits: Limits
    backend: Backend
    meter: QuotaMeter = field(default_factory=QuotaMeter)
    """Counts what callers use; shared with ``Access``."""
    activity: ActivityRecorder = field(default_factory=ActivityRecorder)
    """What was done in the last minute."""
    audit: AuditLog | None = None
    """For what the server does by itself; None: there is none. Calls are written down by the doors."""
    unused: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when there may be files that nothing names any more: they are collected then."""
    stacks: StackResolver = field(init=False)
    """One for all services: what a name meant last is known to each while the database is away."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "stacks", StackResolver(self.store))
