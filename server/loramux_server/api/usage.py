"""What was used."""

from __future__ import annotations

from loramux.v1 import usage_pb2 as pb

from ..core import call as calls
from ..services.availability import Availability
from ..services.usage.service import PAGE, UsageRequest
from .convert.common import from_proto, to_proto


class UsageMethods:
    """``loramux.v1.UsageService``."""

    def __init__(self, availability: Availability) -> None:
        self._open = availability.open

    async def GetUsage(self, request: pb.GetUsageRequest) -> pb.GetUsageResponse:
        asked = from_proto(UsageRequest, request, principal=calls.principal(), page_size=request.page_size or PAGE)
        page = await self._open().usage.usage(asked)
        return to_proto(pb.GetUsageResponse, page, rows=page.items)
