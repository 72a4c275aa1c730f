"""Whether the head of the Ray cluster answers.

While it does not, Ray cannot tell a replica that died from one that is slow, so calls of dead ones hang. And Ray ends,
without a word to anybody, a process whose cluster has had no head for a minute.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from threading import Event, Thread

from .failures import ray_unavailable

JOIN_SECONDS = 30.0
"""How long a server that starts waits for a cluster."""
POLL_SECONDS = 0.2
ASK_SECONDS = 2.0
SILENT_SECONDS = 8.0
"""From then on replicas must speak for themselves."""
PATIENCE_VARIABLE = "RAY_gcs_rpc_server_reconnect_timeout_s"
"""How long Ray waits before it ends processes: 60 seconds, or what the operator of a head that comes back has set."""


def bearable_seconds() -> float:
    """How long the head may be away before the server ends: well before Ray would end it."""
    return 0.75 * float(os.environ.get(PATIENCE_VARIABLE, 60))


def wait_for_head(address: str, seconds: float = JOIN_SECONDS) -> None:
    """Return once something listens at ``host:port``; any other address is Ray's to understand.

    Raises UNAVAILABLE when nothing does in time: Ray itself would try for minutes.
    """
    host, colon, port = address.rpartition(":")
    if not colon or "//" in host or not port.isdecimal():
        return
    deadline = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), max(1.0, seconds)).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise ray_unavailable(f"there is no head at {address} ({error.strerror or error})") from None
        time.sleep(POLL_SECONDS)


class Head:
    """Asked again and again, on a thread of its own: what Ray is asked may not return while the head is away.

    ``ask`` returns when it has answered; it may raise otherwise, or not return.
    """

    def __init__(self, ask: Callable[[], object], clock: Callable[[], float] = time.monotonic) -> None:
        self._ask, self._clock = ask, clock
        self._answered: float | None = None
        self._stopped = Event()
        self.fault = "its head does not answer"
        """What is wrong, where it is silent."""

    def start(self) -> None:
        """Ask from now on."""
        self._answered = self._clock()
        # A daemon: the process must be able to end while Ray does not return.
        Thread(target=self._run, name="ray-head", daemon=True).start()

    def stop(self) -> None:
        """Ask no more."""
        self._stopped.set()

    @property
    def silent_seconds(self) -> float:
        """How long it has been since it answered; 0 before the start."""
        return 0.0 if self._answered is None else self._clock() - self._answered

    def ask(self) -> None:
        """Ask once, and remember what came of it."""
        try:
            self._ask()
        except Exception as error:  # Ray raises errors of many kinds
            self.fault = str(error).splitlines()[0] if str(error) else repr(error)
        else:
            self._answered = self._clock()

    def _run(self) -> None:
        while not self._stopped.wait(ASK_SECONDS):
            self.ask()
