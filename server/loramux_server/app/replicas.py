"""The backend of ``--backend ray`` as the settings ask for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..config import Settings
from ..core.settings import EngineSettings

if TYPE_CHECKING:
    from ..replicas.backend import RayBackend

OTHER_CALLS = 64
"""Commands beside generations that a replica takes at a time: scores, loads, stats, jobs."""


def ray_backend(settings: Settings, engine: EngineSettings, server_id: str) -> RayBackend:
    """Replicas in a Ray cluster, not started yet. ``server_id`` names this server among those of the cluster."""
    from ..replicas.backend import RayBackend
    from ..replicas.cluster import ClusterSettings

    least, most = settings.replica_range
    cluster = ClusterSettings(
        application=f"loramux-{server_id}",
        least=least,
        most=most,
        address=settings.ray_address or "",
        max_ongoing=settings.most_running + settings.max_queue + settings.max_training_jobs + OTHER_CALLS,
        drain_seconds=settings.drain_timeout,
    )
    return RayBackend(engine, cluster)
