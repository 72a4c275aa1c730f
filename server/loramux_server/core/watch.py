"""Whether anybody still waits for a piece of work, for the thread that does it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from .errors import Code, Error


class Watch:
    """Called between steps of the work; raises CANCELLED once nobody waits for it. Safe from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._over = False
        self._act: Callable[[], object] | None = None

    def __call__(self) -> None:
        if self._over:
            raise Error(Code.CANCELLED, "nobody waits for this work any more")

    def end(self) -> None:
        """Nobody waits any more."""
        with self._lock:
            self._over = True
            if self._act is not None:
                self._act()

    @contextmanager
    def ending(self, act: Callable[[], object]) -> Iterator[None]:
        """Call ``act``, which ends a step that cannot look, if the work is over or is ended inside the block."""
        with self._lock:
            self._act = act
            if self._over:
                act()
        try:
            yield
        finally:
            with self._lock:
                self._act = None


UNWATCHED = Watch()
"""For work that is always waited for."""
