"""What a service manager such as systemd is told about this process, as sd_notify(3) describes it."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Mapping
from contextlib import suppress

PATIENCE = 1.0
"""Seconds that a manager gets to take what it must not miss; what comes again is dropped at once."""


class ServiceManager:
    """Told over the datagram socket that NOTIFY_SOCKET names; without one nobody is told. May be used in any thread."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        name = environment.get("NOTIFY_SOCKET", "")
        self._address = f"\0{name[1:]}" if name.startswith("@") else name
        for_us = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        wanted = environment.get("WATCHDOG_USEC", "")
        self.watchdog_seconds = int(wanted) / 1e6 if for_us and wanted.isdigit() else 0.0
        """Seconds of silence after which the manager restarts this process; 0: it does not watch."""

    def status(self, text: str) -> None:
        """What ``systemctl status`` shows."""
        self._tell(f"STATUS={' '.join(text.split())}")

    def ready(self) -> None:
        """Requests are taken: what was ordered after this service may start."""
        self._tell("READY=1", PATIENCE)

    def stopping(self) -> None:
        self._tell("STOPPING=1", PATIENCE)

    async def keep_watchdog(self) -> None:
        """Say twice in each time of the watchdog that the event loop runs. Ends at once where nobody watches."""
        while self._address and self.watchdog_seconds:
            self._tell("WATCHDOG=1")
            await asyncio.sleep(self.watchdog_seconds / 2)

    def _tell(self, line: str, patience: float = 0.0) -> None:
        if not self._address:
            return
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
            out.settimeout(patience)  # a manager that does not read must not hold up the server
            out.sendto(line.encode(), self._address)
