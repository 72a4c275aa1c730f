"""The Ray cluster and the application in it. Every call of Ray that blocks is here, for a thread of its own.

Without an address a cluster of this host is started: it listens on loopback alone, asks for a token that nobody else
knows, and ends with this process. Ray's HTTP proxy and its dashboard are never started.
"""

from __future__ import annotations

import logging
import os
import secrets
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

from ..core.errors import Error
from ..core.settings import EngineSettings
from ..host.resources import usable_cpus
from .failures import ray_unavailable
from .files.own import OwnFiles
from .fronts import FRONT_SECONDS
from .head import wait_for_head
from .installed import ray_missing
from .routing.fleet import REPORT_SECONDS
from .turns import turn

log = logging.getLogger(__name__)

DEPLOYMENT = "engine"
OBJECT_STORE_BYTES = 100 << 20
"""Of a cluster that is started here: what crosses is small."""
POLL_SECONDS = 0.2
LEAST_LOOK_BACK, MOST_LOOK_BACK = 11.0, 30.0
"""Seconds over which Ray averages requests: more than it takes from one count to the next (10), and what is usual."""
QUIET = {"log_level": "ERROR", "enable_access_log": False}
STATS_TIMEOUT = 30.0
JOINED = ("NOT_STARTED", "DEPLOYING", "RUNNING", "UNHEALTHY")
"""States of an application whose replicas a further front uses."""
DELETING = "DELETING"


@dataclass(frozen=True, slots=True)
class ClusterSettings:
    """Which cluster, and how many replicas in it."""

    application: str
    server: str
    """Which server asks, the same in each of its starts."""
    least: int = 1
    most: int = 1
    up_seconds: float = 30.0
    """How long replicas must have too many requests before one is started, where their number follows the load."""
    down_seconds: float = 600.0
    """How long there must be too many replicas before one is ended."""
    address: str = ""
    """Of a cluster that runs already, as Ray takes it; empty: one is started here."""
    max_ongoing: int = 1000
    """Commands that one replica takes at a time."""
    drain_seconds: float = 30.0
    own_files: OwnFiles | None = None
    """Where replicas keep files of their own; None: they share the state directory of the front."""


class Cluster:
    """An application of Ray Serve whose replicas are engines. Its methods block."""

    def __init__(self, engine: EngineSettings, settings: ClusterSettings) -> None:
        self._settings = settings
        self._engine = engine
        self._connected = False
        self.joined = False
        """Whether another front had started the replicas."""

    def deploy(self, progress: Callable[[str], None]) -> Any:
        """Start the cluster, or join it, and the replicas, unless they run; gives Ray's handle once all of them do.

        Raises FAILED_PRECONDITION without Ray, UNAVAILABLE where there is no cluster or it gives up.
        """
        _prepare_environment(local=not self._settings.address)
        try:
            import ray
            from ray import serve
        except ImportError:
            raise ray_missing() from None
        progress("starting Ray" if not self._settings.address else "joining the Ray cluster")
        try:
            self._connect(ray)
            self._connected = True
            progress("starting Ray Serve")
            while True:
                # One front at a time: the others find what it has deployed.
                with turn(self._settings.application) if self._settings.address else nullcontext():
                    serve.start(proxy_location="Disabled", logging_config=QUIET)
                    logging.getLogger("ray.serve").setLevel(logging.WARNING)
                    handle = self._handle(serve)
                if self._runs(serve, progress):
                    return handle
        except Error:
            raise
        except Exception as error:  # Ray raises errors of many kinds
            raise ray_unavailable(str(error)) from error

    def ask_head(self) -> None:
        """Return where the cluster's head answers; where it does not, maybe never."""
        import ray

        ray.nodes()

    def application_is_gone(self) -> bool:
        """Whether Ray Serve has the application no more."""
        from ray import serve

        return self._status(serve) is None

    def close(self, last: bool, headless: bool = False) -> None:
        """End the cluster if it was started here; leave another one, and remove the application if ``last``.

        ``headless``: nobody is there who could remove it.
        """
        if not self._connected:
            return
        import ray
        from ray import serve

        self._connected = False
        try:
            if (last or not self._settings.address) and not headless:
                serve.delete(self._settings.application)
        except Exception as error:  # the cluster is gone: so is the application
            log.warning("the application could not be removed from Ray: %s", error)
        ray.shutdown()

    def _handle(self, serve: Any) -> Any:
        """Ray's handle of the application: of the one that is there, else of a new one."""
        name = self._settings.application
        if (found := serve.status().applications.get(name)) is not None:
            if found.status in JOINED:
                self.joined = True
                return serve.get_app_handle(name)
            serve.delete(name)
        target = serve.RunTarget(self._application(serve), name=name, route_prefix=None)
        (handle,) = serve.run_many([target], wait_for_applications_running=False)
        return handle

    def _connect(self, ray: Any) -> None:
        # What replicas write comes to this process's standard error.
        common = {"log_to_driver": True, "logging_level": logging.ERROR}
        if self._settings.address:
            wait_for_head(self._settings.address)
            ray.init(address=self._settings.address, **common)
            return
        # Without "local" it would join whatever cluster runs on this host.
        ray.init(
            address="local",
            num_cpus=self._settings.most,
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            **common,
        )

    def _application(self, serve: Any) -> Any:
        from .replica import EngineReplica

        settings, engine = self._settings, self._engine
        if not settings.address and engine.threads is None:
            # The replicas share this host's processors.
            engine = replace(engine, threads=max(1, usable_cpus() // settings.most))
        on_gpu = _on_gpu(engine)
        options: dict[str, Any] = {}
        if settings.least == settings.most:
            options["num_replicas"] = settings.least
        else:
            options["autoscaling_config"] = {
                "min_replicas": settings.least,
                "max_replicas": settings.most,
                "target_ongoing_requests": _busy(engine, on_gpu),
                "look_back_period_s": min(max(settings.up_seconds, LEAST_LOOK_BACK), MOST_LOOK_BACK),
                "upscale_delay_s": settings.up_seconds,
                "downscale_delay_s": settings.down_seconds,
            }
        deployment = serve.deployment(EngineReplica).options(
            name=DEPLOYMENT,
            max_ongoing_requests=settings.max_ongoing,
            graceful_shutdown_timeout_s=min(settings.drain_seconds, FRONT_SECONDS),
            health_check_period_s=1.0,
            ray_actor_options=_resources(engine, on_gpu, local=not settings.address),
            request_router_config={
                "request_router_class": "loramux_server.replicas.routing.router.AffinityRouter",
                "request_routing_stats_period_s": REPORT_SECONDS,
                "request_routing_stats_timeout_s": STATS_TIMEOUT,
            },
            logging_config=QUIET,
            **options,
        )
        return deployment.bind(engine, settings.own_files)

    def _status(self, serve: Any) -> Any:
        """What Ray Serve tells of the application; None: it has it no more."""
        found = serve.status().applications.get(self._settings.application)
        return None if found is None or found.status == DELETING else found

    def _runs(self, serve: Any, progress: Callable[[str], None]) -> bool:
        """Wait until the application runs; False: the last of the other fronts took it away meanwhile."""
        told = ""
        while True:
            if (status := self._status(serve)) is None:
                return False
            if status.status == "RUNNING":
                return True
            if status.status == "DEPLOY_FAILED":
                raise ray_unavailable(status.message)
            states = status.deployments[DEPLOYMENT].replica_states if DEPLOYMENT in status.deployments else {}
            running = sum(count for state, count in states.items() if state == "RUNNING")
            now = f"starting replicas, {running} of {self._settings.least} ready"
            if now != told:
                progress(now)
                told = now
            time.sleep(POLL_SECONDS)


def _prepare_environment(*, local: bool) -> None:
    """What Ray reads when it is imported and started. What the operator set stays, but where it would open ports."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_COLOR_PREFIX", "0")
    if local:
        os.environ.pop("RAY_ADDRESS", None)
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # a cluster of this host alone, on any system
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def _on_gpu(engine: EngineSettings) -> bool:
    """Whether replicas run on GPUs: as the settings say, else where the cluster has any."""
    import ray

    return engine.device == "cuda" or (engine.device == "auto" and ray.cluster_resources().get("GPU", 0) > 0)


def _busy(engine: EngineSettings, on_gpu: bool) -> int:
    """Requests of a replica beyond which more replicas are started: half of its batch."""
    return max(1, engine.step_size("cuda" if on_gpu else "cpu").sequences // 2)


def _resources(engine: EngineSettings, on_gpu: bool, *, local: bool) -> dict[str, Any]:
    """What Ray reserves for a replica: a GPU, or processors."""
    threads = engine.threads or 1
    return {
        # A cluster that is started here has as many processors for Ray as replicas.
        "num_cpus": 1 if local else threads,
        "num_gpus": 1 if on_gpu else 0,
        "runtime_env": {"env_vars": {"OMP_NUM_THREADS": str(threads)}},
    }
