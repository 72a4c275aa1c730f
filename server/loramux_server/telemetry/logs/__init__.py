"""Logs: structlog to standard error, for people or as JSON, one format for ours and for libraries'.

What is bound with ``structlog.contextvars`` (the request's id, the job's) is on every line. Prompts and answers are
never logged. The child processes log the same way. What libraries say to programmers is shown at level ``debug`` only.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import threading
from collections.abc import Mapping, MutableMapping
from types import TracebackType
from typing import Any

import structlog

from .. import stderr
from .lines import Event, ForPeople, cleaned, json_line

VARIABLE = "_LORAMUX_LOG"
"""Tells child processes the level and the format."""
BOUND_VARIABLE = "_LORAMUX_LOG_BOUND"
"""Tells a child process what is bound where it was started, as JSON."""
FOR_PROGRAMMERS = ("py.warnings", "matplotlib")
"""Loggers whose warnings no operator can act on: Python's warnings; caches and fonts of pictures."""
LAST_LINES = 1.0
"""Seconds that the last lines of a process may take."""
_ADVICE = re.compile(r"\bpip3? install\b|\bconda install\b|To install follow")
"""In a library's words: something faster could be installed. The server works without, and its pins are its own."""
_OURS = "loramux_server"


class Output:
    """How events become lines on standard error."""

    def __init__(self, fmt: str) -> None:
        as_json = fmt == "json"
        self._render = json_line if as_json else ForPeople(colors=bool(sys.stderr and sys.stderr.isatty()))
        self._stamp = structlog.processors.TimeStamper(fmt="iso" if as_json else "%H:%M:%S", utc=as_json)
        self._writer = stderr.open_writer(self._dropped)

    def render(self, event: Mapping[str, Any]) -> str:
        """An event of whatever values as a line."""
        return self._render(cleaned(event))

    def send(self, line: str, *, urgent: bool = True) -> None:
        """Have a line written."""
        if self._writer is not None:
            stderr.tell(line, urgent=urgent)

    def write(self, level: str, logger: str, event: str, fields: Event) -> None:
        """Write an event whose values are short and of plain types: past structlog, at a tenth of its cost."""
        bound = structlog.contextvars.get_contextvars()
        self.send(self._line(level, logger, event, {**bound, **fields}), urgent=False)

    def stamped(self, logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        """As a processor of structlog: with the time."""
        return self._stamp(logger, method, event)

    def _line(self, level: str, logger: str, event: str, fields: Event) -> str:
        head = self._stamp(None, "", {})
        return self._render({**head, "level": level, "logger": logger, "event": event, **fields})

    def _dropped(self, lines: int, why: str) -> bytes:
        return f"{self._line('warning', __name__, 'log lines were dropped', {'lines': lines, 'why': why})}\n".encode()


_output: Output | None = None


def configure(level: str, fmt: str) -> None:
    """Set up logging for the process and its children.

    ``level`` as in ``logging``, lower case; ``fmt`` is ``console`` or ``json``.
    """
    global _output
    os.environ[VARIABLE] = f"{level} {fmt}"
    output = _output = Output(fmt)
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        output.stamped,
    ]
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
    handler = _Handler(output)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                lambda _, __, event: output.render(event),
            ],
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
    logging.getLogger(_OURS).setLevel(level.upper())
    sys.excepthook = _uncaught
    threading.excepthook = _uncaught_in_thread


def configure_child() -> None:
    """Set up logging as in the server that started this process, with what was bound there."""
    level, fmt = os.environ.get(VARIABLE, "info console").split()
    configure(level, fmt)
    structlog.contextvars.bind_contextvars(**json.loads(os.environ.pop(BOUND_VARIABLE, "{}")))


def child_environment() -> dict[str, str]:
    """The environment of a child process that works for the call or the job that is bound here."""
    return {**os.environ, BOUND_VARIABLE: json.dumps(structlog.contextvars.get_contextvars(), default=str)}


def write(level: str, logger: str, event: str, fields: Event) -> None:
    """Write a line of many: see :meth:`Output.write`. Nothing where the logs are another program's."""
    if _output is not None and is_logged(level):
        _output.write(level, logger, event, fields)


def is_logged(level: str) -> bool:
    """Whether our lines of this level are written."""
    return logging.getLogger(_OURS).isEnabledFor(getattr(logging, level.upper()))


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """The logger of a module: ``get_logger(__name__)``."""
    logger: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(name)
    return logger


class _Handler(logging.Handler):
    """Hands lines to the writer, and never raises: a line that cannot be made says so."""

    def __init__(self, output: Output) -> None:
        super().__init__()
        self._output = output

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
        except Exception as error:
            about = {"level": "error", "logger": record.name, "event": "a line of the log cannot be made"}
            line = self._output.render({**about, "error": repr(error)})
        self._output.send(line)

    def flush(self) -> None:
        stderr.flush(LAST_LINES)


def _is_no_advice(record: logging.LogRecord) -> bool:
    """Whether a line is ours, or worse than a warning, or not about what could be installed."""
    ours = record.name.startswith(_OURS)
    return ours or record.levelno > logging.WARNING or not _ADVICE.search(record.getMessage())


def _uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    logging.getLogger(_OURS).critical("the process ends by an exception", exc_info=(kind, error, trace))


def _uncaught_in_thread(about: threading.ExceptHookArgs) -> None:
    name = "" if about.thread is None else about.thread.name
    error = about.exc_value or about.exc_type()
    if not isinstance(error, SystemExit):
        logging.getLogger(_OURS).error("the thread %s ended by an exception", name, exc_info=error)
