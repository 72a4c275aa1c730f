"""What this server is, and what it does now."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from loramux.v1 import common_pb2
from loramux.v1 import server_pb2 as pb

from ..core import call as calls
from ..core.call import about
from ..services.availability import Availability
from ..services.profiles import take_profile
from .convert.common import to_proto
from .convert.server import replica_to_proto, server_info_to_proto, stats_to_proto


class ServerMethods:
    """``loramux.v1.ServerService``. It answers while the server loads, too."""

    def __init__(self, availability: Availability) -> None:
        self._availability = availability

    async def GetServerInfo(self, request: pb.GetServerInfoRequest) -> pb.ServerInfo:
        caller = calls.principal()
        return server_info_to_proto(await self._availability.describe(caller), caller)

    async def GetStats(self, request: pb.GetStatsRequest) -> pb.ServerStats:
        return stats_to_proto(await self._availability.stats(calls.principal(), request.window_seconds))

    async def ListReplicas(self, request: pb.ListReplicasRequest) -> pb.ListReplicasResponse:
        replicas = await self._availability.open_context().backend.replicas()
        return pb.ListReplicasResponse(replicas=map(replica_to_proto, replicas))

    async def DrainReplica(self, request: pb.DrainReplicaRequest) -> pb.DrainReplicaResponse:
        context = self._availability.open_context()
        about("replica", id=request.id)
        await context.backend.drain(request.id)
        return pb.DrainReplicaResponse()

    async def ProfileEngine(self, request: pb.ProfileEngineRequest) -> AsyncGenerator[pb.ProfileEngineResponse]:
        context = self._availability.open_context()
        taken = take_profile(context, request.seconds, kernels=not request.without_kernels)
        async with aclosing(taken):
            name = ""
            async for found in taken:
                if isinstance(found, bytes):
                    yield pb.ProfileEngineResponse(chunk=common_pb2.FileChunk(name=name, data=found))
                    continue
                name = found.files[0].name
                header = to_proto(pb.ProfileEngineHeader, found, found.result)
                yield pb.ProfileEngineResponse(header=header)
