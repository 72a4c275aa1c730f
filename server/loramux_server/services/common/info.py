"""Who this server is and whether it is ready."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from ...core.backend import EngineInfo, EngineStats


class Readiness(StrEnum):
    """States of the server, in order of life."""

    STARTING = "starting"
    LOADING = "loading"
    WARMING = "warming"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """What ``GetServerInfo`` answers. ``engine`` and ``stats`` are None before the engine is up."""

    version: str
    readiness: Readiness
    uptime: float
    """Seconds."""
    engine: EngineInfo | None
    stats: EngineStats | None
