"""The first line of a server, said before anything slow: importing what it is made of takes seconds on a cold disk."""

from __future__ import annotations

import json
import os
import threading
import time
import tomllib
from collections.abc import Sequence
from contextlib import suppress

from .stderr import tell

SILENCE = 0.55
"""Seconds of silence after which the line comes even before the flags are checked."""
HELP = {"-h", "--help"}


class Opening:
    """Says once that the server starts: when asked to, or by itself when nothing was said for a moment.

    So a refusal that comes at once, such as a bad flag, stays the only line, and ``--help`` starts nothing, however
    slow the machine. May be used from any thread.
    """

    def __init__(self, version: str, argv: Sequence[str], silence: float = SILENCE) -> None:
        self.began = time.monotonic()
        self._line = f"loramux {version} starts"
        self._json = wants_json(argv)
        self._lock = threading.Lock()
        self._over = not HELP.isdisjoint(argv)
        self._timer = threading.Timer(silence, self.say)
        self._timer.daemon = True
        self._timer.start()

    def say(self) -> None:
        """Say it now, unless it was said or is not wanted any more."""
        with self._lock:
            if not self._over:
                self._over = True
                tell(json.dumps({"event": self._line, "level": "info"}) if self._json else self._line + ".")
        self._timer.cancel()

    def silence(self) -> None:
        """Do not say it any more: something else was said."""
        with self._lock:
            self._over = True
        self._timer.cancel()


def wants_json(argv: Sequence[str]) -> bool:
    """Whether lines are for programs, found out before the settings are read: wrong ones make it the default, no."""
    words = list(argv)
    with suppress(ValueError, IndexError):
        return words[words.index("--log-format") + 1] == "json"
    for word in words:
        if word.startswith("--log-format="):
            return word.endswith("=json")
    if named := os.environ.get("LORAMUX_LOG__FORMAT"):
        return named == "json"
    file = os.environ.get("LORAMUX_CONFIG", "")
    with suppress(ValueError, IndexError):
        file = words[words.index("--config") + 1]
    with suppress(OSError, ValueError, AttributeError), open(file, "rb") as opened:
        return bool(tomllib.load(opened).get("log", {}).get("format") == "json")
    return False
