"""What callers are told when replicas, or the whole cluster, are gone."""

from __future__ import annotations

import logging

from ..core.errors import Code, Error, internal_error

log = logging.getLogger(__name__)


def error_of(error: Exception) -> Error:
    """An error of Ray in our words. A replica that died takes its calls along."""
    from ray.exceptions import RayActorError, RayTaskError, TaskCancelledError
    from ray.serve.exceptions import RayServeException

    if isinstance(error, RayTaskError) or not isinstance(
        error, RayActorError | TaskCancelledError | RayServeException | ConnectionError
    ):
        id, internal = internal_error()
        log.error("a call of a replica failed by a defect (%s)", id, exc_info=error)
        return internal
    log.warning("a replica is gone: %s", str(error).splitlines()[0][:200])
    return lost()


def lost() -> Error:
    """The replica of a call is gone."""
    return _replica_lost("the replica that worked on the request is gone; try once more")


def draining() -> Error:
    """The replica of a call is to be replaced."""
    return _replica_lost("the replica is being drained; try once more")


def none_ready() -> Error:
    """No replica takes work just now."""
    return Error(Code.UNAVAILABLE, "no replica is ready; try once more", reason="ENGINE_RESTARTING", retry_after=5.0)


def ray_unavailable(why: str) -> Error:
    """Ray does not run the replicas, and nothing but another start of the server can help."""
    return Error(Code.UNAVAILABLE, f"Ray does not run the replicas: {why[:500]}", reason="RAY_UNAVAILABLE")


def _replica_lost(message: str) -> Error:
    return Error(Code.UNAVAILABLE, message, reason="REPLICA_LOST", retry_after=1.0)
