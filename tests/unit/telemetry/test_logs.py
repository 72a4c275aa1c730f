"""Logs: one JSON object a line, with what is bound to the request, also for libraries and tracebacks."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator

import pytest
import structlog

from loramux_server.telemetry.logs import VARIABLE, configure, get_logger


@pytest.fixture(autouse=True)
def restore() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    before = os.environ.get(VARIABLE)
    yield
    logging.captureWarnings(False)
    os.environ.pop(VARIABLE, None)
    if before is not None:
        os.environ[VARIABLE] = before
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


ADVICE = "Failed to load a kernel: no module. Please make sure you already `pip install kernels`"


def _libraries_talk() -> None:
    logging.getLogger("some_kernels.cpu").warning(ADVICE)
    logging.getLogger("matplotlib").warning("/home/x/.config/matplotlib is not a writable directory")
    logging.getLogger("matplotlib.font_manager").warning("Matplotlib is building the font cache")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("this will be an argument in the next version", FutureWarning, stacklevel=1)


def test_field_c_advice_of_libraries_is_for_programmers(capsys: pytest.CaptureFixture[str]) -> None:
    configure("info", "json")
    _libraries_talk()
    assert capsys.readouterr().err == ""
    logging.getLogger("some_kernels").error("no GPU. %s", ADVICE)
    logging.getLogger("some_loader").warning("weights are missing")
    get_logger("loramux_server.store").warning("install it with: pip install psycopg")
    assert len(capsys.readouterr().err.splitlines()) == 3
    configure("debug", "json")
    _libraries_talk()
    assert len(capsys.readouterr().err.splitlines()) == 4


def test_field_c_children_log_as_the_server_does() -> None:
    configure("warning", "json")
    code = (
        "import logging; from loramux_server.telemetry.logs import configure_child; configure_child()\n"
        "log = logging.getLogger('loramux_server.engine'); log.info('hidden'); log.warning('shown')\n"
        f"logging.getLogger('some_kernels').warning({ADVICE!r})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    (line,) = done.stderr.splitlines()
    assert json.loads(line)["event"] == "shown"
