"""What this server is, and what it does now."""

from __future__ import annotations

from loramux.v1 import server_pb2 as pb

from ..core import call as calls
from ..services.availability import Availability
from .convert.server import server_info_to_proto, stats_to_proto


class ServerMethods:
    """``loramux.v1.ServerService``. It answers while the server loads, too."""

    def __init__(self, availability: Availability) -> None:
        self._availability = availability

    async def GetServerInfo(self, request: pb.GetServerInfoRequest) -> pb.ServerInfo:
        caller = calls.principal()
        return server_info_to_proto(await self._availability.describe(caller), caller)

    async def GetStats(self, request: pb.GetStatsRequest) -> pb.ServerStats:
        return stats_to_proto(await self._availability.stats(calls.principal(), request.window_seconds))
