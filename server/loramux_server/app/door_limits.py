"""What the settings say about the clients of each door."""

from __future__ import annotations

from ..config import Settings
from ..http.exchanges.limits import Limits as HttpLimits
from ..rpc.limits import RpcLimits


def rpc_limits(settings: Settings) -> RpcLimits:
    """Those of the gRPC door."""
    return RpcLimits(
        stall_timeout=settings.stall_timeout,
        max_message=int(settings.grpc_max_message),
        max_metadata=int(settings.grpc_max_metadata),
        max_connection_age=settings.max_connection_age,
        keepalive_time=settings.grpc_keepalive_time,
        keepalive_timeout=settings.grpc_keepalive_timeout,
    )


def http_limits(settings: Settings) -> HttpLimits:
    """Those of the HTTP door."""
    return HttpLimits(
        stall_timeout=settings.stall_timeout,
        max_body=int(settings.http_max_body),
        max_head=int(settings.http_max_headers),
        head_timeout=settings.http_header_timeout,
        keepalive_timeout=settings.http_keepalive_timeout,
        max_connections=settings.http_max_connections,
    )
