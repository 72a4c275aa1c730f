"""What the app knows of a door."""

from __future__ import annotations

from typing import Protocol

from ..config import Address


class Door(Protocol):
    """A protocol that clients speak, at an address. Doors call the services; the app alone knows that there are doors.

    A door answers from ``start`` on: what it may answer before the server is ready, and after, ``Availability`` tells.
    """

    @property
    def address(self) -> Address:
        """Where it listens; with the real port once it does."""
        ...

    @property
    def running(self) -> int:
        """Calls that are being answered."""
        ...

    async def start(self) -> None:
        """Listen. Raises FAILED_PRECONDITION when the address cannot be had."""
        ...

    async def set_serving(self, serving: bool) -> None:
        """Tell load balancers whether to send calls."""
        ...

    async def drain(self, timeout: float) -> int:
        """Wait up to ``timeout`` seconds for the running calls, then end the rest; gives their number."""
        ...

    async def stop(self) -> None:
        """Close all connections. Fine to call twice, and when ``start`` failed."""
        ...
