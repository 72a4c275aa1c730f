"""The log of this process as an operator sees it, and all as it was afterwards."""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import structlog

from loramux_server.telemetry import logs, stderr
from loramux_server.telemetry.logs import VARIABLE, configure


@dataclass
class Logged:
    """Standard error of this process. Nothing is logged before ``start``."""

    _capture: pytest.CaptureFixture[str]

    def start(self, level: str = "info", fmt: str = "json") -> None:
        """Log as a server that was started with these flags."""
        configure(level, fmt)

    def text(self) -> str:
        """What was written since the last look."""
        stderr.flush(10)
        return self._capture.readouterr().err

    def lines(self) -> list[str]:
        """The lines that were written since the last look."""
        text = self.text()
        assert not text or text.endswith("\n")
        return text.split("\n")[:-1]

    def events(self, event: str = "") -> list[dict[str, Any]]:
        """The same as JSON, or only those of one event."""
        found = [json.loads(line) for line in self.lines()]
        return [each for each in found if event in ("", each["event"])]


@contextmanager
def logging_here(capture: pytest.CaptureFixture[str]) -> Iterator[Logged]:
    """Give what a test starts the log with, and put everything back that this changes."""
    root, config, variable = logging.getLogger(), structlog.get_config(), os.environ.get(VARIABLE)
    handlers, level, hooks = list(root.handlers), root.level, (sys.excepthook, threading.excepthook)
    try:
        yield Logged(capture)
    finally:
        logging.captureWarnings(False)
        os.environ.pop(VARIABLE, None)
        if variable is not None:
            os.environ[VARIABLE] = variable
        root.handlers[:] = handlers
        root.setLevel(level)
        logging.getLogger("loramux_server").setLevel(logging.NOTSET)
        sys.excepthook, threading.excepthook = hooks
        stderr.close_writer()
        logs._output = None
        structlog.configure(**config)
        structlog.contextvars.clear_contextvars()
