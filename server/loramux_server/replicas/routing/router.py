"""The policy as a request router of Ray Serve. Ray copies this module by value, so it keeps no state of its own."""

from __future__ import annotations

from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from . import fleet as fleets
from .affinity import Work


class AffinityRouter(RequestRouter):
    """Ranks replicas as the application's fleet does. The second argument of each call is its ``Work``."""

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        by_id = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        fleet = fleets.fleet_of(self.app_name)
        if pending_request is None or fleet is None:
            return [candidate_replicas]
        pending_request.routing_context.should_backoff = True
        return [[by_id[id]] for id in fleet.rank(_work(pending_request), by_id)]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        if (fleet := fleets.fleet_of(self.app_name)) is not None:
            fleet.began(_work(pending_request), replica_id.unique_id)

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        super().update_replicas(replicas)
        if (fleet := fleets.fleet_of(self.app_name)) is not None:
            reports = {replica.replica_id.unique_id: fleets.Report(**replica.routing_stats) for replica in replicas}
            fleet.update(reports)

    def on_replica_actor_died(self, replica_id: ReplicaID) -> None:
        super().on_replica_actor_died(replica_id)
        if (fleet := fleets.fleet_of(self.app_name)) is not None:
            fleet.lost(replica_id.unique_id)


def _work(request: PendingRequest) -> Work:
    return next(found for found in request.args if isinstance(found, Work))
