"""How a caller is refused who is not known: few words, the same for all that fails; the log says more."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TypeAlias

from ...core.callers.principal import Principal
from ...core.errors import Code, Error
from ...telemetry.logs import get_logger

logger = get_logger(__name__)

HOW = "send the metadata 'authorization: Bearer KEY' (Client(api_key=...), loramux --api-key, LORAMUX_API_KEY)"
TOLD_EVERY = 1.0
"""Least seconds between two lines of the log about refused callers, who must not be able to fill a disk."""


@dataclass(frozen=True, slots=True)
class Refused:
    """What is shown opens nothing. This is for the log alone."""

    cause: str
    key_id: str = ""
    """Of the key that was shown, or the subject of a token."""


Verdict: TypeAlias = Principal | Refused


def missing() -> Error:
    """UNAUTHENTICATED for a caller who shows nothing."""
    return Error(Code.UNAUTHENTICATED, f"this server asks for a key: {HOW}", reason="KEY_MISSING")


def invalid() -> Error:
    """UNAUTHENTICATED for a caller who shows what does not open anything, whatever is wrong with it."""
    return Error(Code.UNAUTHENTICATED, "the key is not valid", reason="KEY_INVALID")


def unavailable() -> Error:
    """UNAVAILABLE for a caller of whom it cannot be found out now whether it is known."""
    return Error(
        Code.UNAVAILABLE, "keys cannot be checked now; try again", reason="IDENTITY_UNAVAILABLE", retry_after=1.0
    )


class RefusalLog:
    """Tells operators why callers were refused, one a second; secrets are never told."""

    def __init__(self) -> None:
        self._next = 0.0
        self._untold = 0

    def tell(self, refused: Refused, peer: str) -> None:
        """Tell of one, or count it for the next line."""
        now = time.monotonic()
        if now < self._next:
            self._untold += 1
            return
        self._next = now + TOLD_EVERY
        logger.warning(
            "caller refused", cause=refused.cause, key_id=refused.key_id, peer=peer, others_untold=self._untold
        )
        self._untold = 0
