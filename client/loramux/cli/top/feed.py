"""Asks a server for its stats again and again on a thread, so that the screen answers keys however slow it is."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType

from ...client import Client
from ...errors import InvalidArgument, LoramuxError, PermissionDenied, Unauthenticated
from ...types import ServerInfo, ServerStats
from ..common import error_lines

PATIENCE = 5.0
"""Seconds that a call may take before the connection counts as lost."""
REMEMBERED = 120
FATAL = (Unauthenticated, PermissionDenied, InvalidArgument)
"""What does not get better by trying again."""


class Feed:
    """``ring`` is called, on the feed's thread, when there is something new to show."""

    def __init__(self, client: Client, interval: float, window: int, ring: Callable[[], object]) -> None:
        self.info: ServerInfo | None = None
        self.stats: ServerStats | None = None
        self.rates: deque[float] = deque(maxlen=REMEMBERED)
        self.fatal: Exception | None = None
        """Why it has ended by itself."""
        self._client, self._interval, self._window, self._ring = client, interval, window, ring
        self._error = ""
        self._lost_at = 0.0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="stats", daemon=True)

    def __enter__(self) -> Feed:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._stopping.set()
        self._client.close()  # which ends a call that waits
        self._thread.join(PATIENCE)

    @property
    def trouble(self) -> str:
        """Why there is nothing new, and since when; empty: there is."""
        if not (error := self._error):
            return ""
        return f"no answer for {time.monotonic() - self._lost_at:.0f} s, trying again: {error}"

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._ask()
            except FATAL as error:
                self.fatal = error
            except LoramuxError as error:
                self._lost(error_lines(error)[0])
            except Exception as error:  # a defect of ours: it is raised where it is seen
                self.fatal = error
            if self._stopping.is_set():
                return
            self._ring()
            if self.fatal is not None:
                return
            self._stopping.wait(self._interval)

    def _ask(self) -> None:
        self.info = self._client.info(timeout=PATIENCE)
        stats = self._client.stats(self._window, timeout=PATIENCE)
        self.stats, self._error = stats, ""
        self.rates.append((stats.total or stats.own).generated_tokens_per_second)

    def _lost(self, why: str) -> None:
        if not self._error:
            self._lost_at = time.monotonic()
        self._error = why
