"""Logs: structlog to standard error, for people or as JSON, one format for ours and for libraries'.

What is bound with ``structlog.contextvars`` (the request's id) is on every line. Prompts and answers are never logged.
The child processes log the same way. What libraries say to programmers is shown at level ``debug`` only.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from typing import Any

import structlog

VARIABLE = "_LORAMUX_LOG"
"""Tells child processes the level and the format."""
FOR_PROGRAMMERS = ("py.warnings", "matplotlib")
"""Loggers whose warnings no operator can act on: Python's warnings; caches and fonts of pictures."""
_ADVICE = re.compile(r"\bpip3? install\b|\bconda install\b|To install follow")
"""In a library's words: something faster could be installed. The server works without, and its pins are its own."""


def configure(level: str, fmt: str) -> None:
    """Set up logging for the process and its children.

    ``level`` as in ``logging``, lower case; ``fmt`` is ``console`` or ``json``.
    """
    os.environ[VARIABLE] = f"{level} {fmt}"
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso" if fmt == "json" else "%H:%M:%S", utc=fmt == "json"),
    ]
    if fmt == "json":
        last: list[Any] = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    else:
        plain = structlog.dev.plain_traceback
        last = [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain)]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    logging.captureWarnings(True)
    if level != "debug":
        handler.addFilter(_is_no_advice)
    for name in FOR_PROGRAMMERS:
        logging.getLogger(name).setLevel(logging.NOTSET if level == "debug" else logging.ERROR)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    # Ours at the level that was asked for; libraries only when something is wrong.
    logging.getLogger("loramux_server").setLevel(level.upper())


def configure_child() -> None:
    """Set up logging as in the server that started this process."""
    level, fmt = os.environ.get(VARIABLE, "info console").split()
    configure(level, fmt)


def _is_no_advice(record: logging.LogRecord) -> bool:
    """Whether a line is ours, or worse than a warning, or not about what could be installed."""
    ours = record.name.startswith("loramux_server")
    return ours or record.levelno > logging.WARNING or not _ADVICE.search(record.getMessage())


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """The logger of a module: ``get_logger(__name__)``."""
    logger: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(name)
    return logger
