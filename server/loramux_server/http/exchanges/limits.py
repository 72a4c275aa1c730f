"""What a client of the HTTP door may take, whoever it is."""

from __future__ import annotations

from dataclasses import dataclass

MIN_RATE = 500
"""Bytes a second that a body must come with on average once the stall timeout is over."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Sizes in bytes, times in seconds."""

    stall_timeout: float = 60.0
    """Longest time for the next piece of a body to come, or of an answer to be taken."""
    max_body: int = 8 << 20
    """Of a body that is no upload; files come in parts of their own."""
    max_head: int = 32 << 10
    """Of a request's line and headers."""
    head_timeout: float = 20.0
    """Longest time from a connection, or from a request's first byte, to the end of its headers."""
    keepalive_timeout: int = 75
    """Longest silence between two requests of a connection."""
    max_connections: int = 4096
    """Connections at once; requests on more are answered 503."""
