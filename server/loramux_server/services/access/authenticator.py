"""From what a caller shows to who it is."""

from __future__ import annotations

from typing import Protocol

from ...core.principal import LOCAL, Principal
from .credentials import Credentials


class Authenticator(Protocol):
    """Knows callers. One instance serves all doors."""

    async def authenticate(self, credentials: Credentials) -> Principal:
        """Who shows these credentials. Raises UNAUTHENTICATED, the same words for all that is unknown or over."""
        ...


class Open:
    """Takes everybody for the default tenant: a server without keys, on loopback."""

    async def authenticate(self, credentials: Credentials) -> Principal:
        """The local principal, whatever is shown."""
        return LOCAL
