"""What the door tells of the server's life and version, to anybody."""

from __future__ import annotations

import time
from typing import Literal

from typing_extensions import TypedDict

from loramux import __version__

from ..services.availability import Availability, Readiness
from .description.describe import describe
from .exchanges.exchange import Exchange


class Status(TypedDict):
    """How far the server's life has come."""

    status: str


class Alive(TypedDict):
    """The server's own time, in seconds since 1970."""

    status: Literal["alive"]
    time: int


class Version(TypedDict):
    """The version of the server."""

    version: str


class Health:
    """``serving`` is what it says beside the server's own life."""

    def __init__(self, availability: Availability) -> None:
        self.serving = False
        self._availability = availability

    @describe(answer=Status, errors=(503,))
    async def ready(self, exchange: Exchange) -> None:
        """Whether the server takes calls."""
        readiness = self._availability.readiness
        up = self.serving and readiness is Readiness.READY
        away = self.serving and not up
        await exchange.send_json({"status": "unavailable" if away else readiness.value}, 200 if up else 503)

    @describe(answer=Alive)
    async def live(self, exchange: Exchange) -> None:
        """Whether the process is alive."""
        await exchange.send_json({"status": "alive", "time": int(time.time())})

    @describe(answer=Version)
    async def version(self, exchange: Exchange) -> None:
        """The version of the server."""
        await exchange.send_json({"version": __version__})
