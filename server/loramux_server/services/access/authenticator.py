"""From what a caller shows to who it is."""

from __future__ import annotations

from typing import Protocol

from ...core.callers.principal import Principal
from .credentials import Credentials


class Authenticator(Protocol):
    """Knows callers. One instance serves all doors."""

    async def authenticate(self, credentials: Credentials) -> Principal:
        """Who shows these credentials. Raises UNAUTHENTICATED, the same words for all that is unknown or over."""
        ...
