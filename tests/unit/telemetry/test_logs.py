"""Logs: one JSON object a line, with what is bound to the request, also for libraries and tracebacks."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from loramux_server.telemetry.logs import configure, get_logger


@pytest.fixture(autouse=True)
def restore() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.getLogger("loramux_server").setLevel(logging.NOTSET)
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def test_json_lines_carry_the_request_id(capsys: pytest.CaptureFixture[str]) -> None:
    configure("info", "json")
    logger = get_logger("loramux_server.test")
    with structlog.contextvars.bound_contextvars(request_id="r1"):
        logger.info("served", tokens=3)
        logging.getLogger("sqlalchemy").warning("slow %s", "query")
    logger.debug("hidden")
    logging.getLogger("sqlalchemy").info("hidden too")
    first, second = (json.loads(line) for line in capsys.readouterr().err.splitlines())
    assert (first["event"], first["tokens"], first["request_id"], first["level"]) == ("served", 3, "r1", "info")
    assert (second["event"], second["request_id"]) == ("slow query", "r1")


def test_a_traceback_stays_within_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure("error", "json")
    try:
        raise ValueError("broken")
    except ValueError:
        get_logger("loramux_server.test").exception("failed", error_id="e1")
    (line,) = capsys.readouterr().err.splitlines()
    assert "ValueError: broken" in json.loads(line)["exception"]


def test_console_lines_are_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    configure("debug", "console")
    get_logger("loramux_server.test").debug("looked", at="it")
    assert "looked" in (text := capsys.readouterr().err)
    assert "at=it" in text
