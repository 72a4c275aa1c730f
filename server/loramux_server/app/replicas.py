"""The backend of ``--backend ray`` as the settings ask for it."""

from __future__ import annotations

from dataclasses import astuple, replace
from hashlib import sha256
from typing import TYPE_CHECKING

from ..config import Settings
from ..core.settings import EngineSettings
from ..store.blobs.places import CACHE_BYTES
from ..store.store import Store

if TYPE_CHECKING:
    from ..replicas.backend import RayBackend
    from ..replicas.files.own import OwnFiles

OTHER_CALLS = 64
"""Commands beside generations that a replica takes at a time: scores, loads, stats, jobs."""


def ray_backend(settings: Settings, engine: EngineSettings, store: Store) -> RayBackend:
    """Replicas in a Ray cluster, not started yet.

    Servers of one database that join a cluster with the same settings of the engine share its replicas.
    """
    from ..replicas.backend import RayBackend
    from ..replicas.cluster import ClusterSettings
    from ..replicas.files.front import FrontFiles
    from ..replicas.files.own import OwnFiles

    own = None
    if settings.replica_dir is not None:
        assert settings.blobs_url is not None
        own = OwnFiles(
            folder=str(settings.replica_dir),
            blobs_url=settings.blobs_url.get_secret_value(),
            identity=store.database.identity,
            cache_bytes=settings.blobs_cache or CACHE_BYTES,
        )
    least, most = settings.replica_range
    cluster = ClusterSettings(
        application=application_name(store.database.identity, engine, own),
        server=store.state.id,
        least=least,
        most=most,
        up_seconds=settings.autoscale_up_seconds,
        down_seconds=settings.autoscale_down_seconds,
        address=settings.ray_address or "",
        max_ongoing=settings.most_running + settings.max_queue + settings.max_training_jobs + OTHER_CALLS,
        drain_seconds=settings.drain_timeout,
        own_files=own,
    )
    if cluster.address:
        # Its replicas write results for other servers too, whose state directories are not known here.
        engine = replace(engine, folders=None)
    return RayBackend(engine, cluster, None if own is None else FrontFiles(store))


def application_name(database_id: str, engine: EngineSettings, own: OwnFiles | None = None) -> str:
    """Of the Ray Serve application that servers share: those of one database whose engines are set up alike.

    Where replicas have files of their ``own``, a server's copies of blobs are nothing to them.
    """
    alike = replace(engine, state_dir="", folders=None, blobs=engine.blobs if own is None else "")
    settings = (astuple(alike), None if own is None else astuple(own))
    return f"loramux-{database_id}-{sha256(repr(settings).encode()).hexdigest()[:12]}"
