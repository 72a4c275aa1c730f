"""What this server is,."""

from __future__ import annotations

from loramux.v1 import server_pb2 as pb

from ..core import call as calls
from ..services.availability import Availability
from .convert.server import server_info_to_proto


class ServerMethods:
    """``loramux.v1.ServerService``. It answers while the server loads, too."""

    def __init__(self, availability: Availability) -> None:
        self._availability = availability

    async def GetServerInfo(self, request: pb.GetServerInfoRequest) -> pb.ServerInfo:
        caller = calls.principal()
        return server_info_to_proto(await self._availability.describe(caller), caller)
