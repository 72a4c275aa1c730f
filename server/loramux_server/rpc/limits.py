"""What a client of the gRPC door may take, whoever it is."""

from __future__ import annotations

from dataclasses import dataclass

MAX_SENT = 64 << 20
"""Bytes of the largest message of an answer."""


@dataclass(frozen=True, slots=True)
class RpcLimits:
    """Sizes in bytes, times in seconds."""

    stall_timeout: float = 60.0
    """Longest time that a caller may neither take the next message of an answer nor send the next one of its own."""
    max_message: int = 8 << 20
    """Of a request, or of a part of an upload."""
    max_metadata: int = 16 << 10
    """Of a call: what goes beyond is refused at random, and always beyond twice as much."""
    max_connection_age: float = 0.0
    """Age at which a client is asked to connect anew; 0: never."""
    keepalive_time: float = 30.0
    """Silence of a connection after which the client is asked whether it is there."""
    keepalive_timeout: float = 20.0
    """Time for it to say so."""

    def options(self) -> tuple[tuple[str, int], ...]:
        """These limits as gRPC wants them, and what nobody would set otherwise."""
        options = {
            # Without it a second server would share the port and take half of the calls.
            "grpc.so_reuseport": 0,
            "grpc.max_receive_message_length": self.max_message,
            "grpc.max_send_message_length": MAX_SENT,
            "grpc.max_metadata_size": self.max_metadata,
            "grpc.absolute_max_metadata_size": 2 * self.max_metadata,
            # Calls that were not looked at yet: gRPC ends those beyond the bound without a reason; nothing counts them.
            "grpc.server.max_pending_requests": 100_000,
            "grpc.server.max_pending_requests_hard_limit": 100_000,
            # Seconds; those that wait longer, 30 by itself, end as CANCELLED, which tells nobody to come again.
            "grpc.server_max_unrequested_time_in_server": 3600,
            "grpc.keepalive_time_ms": _ms(self.keepalive_time),
            "grpc.keepalive_timeout_ms": _ms(self.keepalive_timeout),
            "grpc.keepalive_permit_without_calls": 1,
            "grpc.http2.min_ping_interval_without_data_ms": 10_000,
            "grpc.http2.max_ping_strikes": 3,
        }
        if self.max_connection_age:
            # Calls on a connection that is too old go on: without a bound on the grace, none of them is cut.
            options["grpc.max_connection_age_ms"] = _ms(self.max_connection_age)
        return tuple(options.items())


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
