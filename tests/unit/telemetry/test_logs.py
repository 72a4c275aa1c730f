"""Logs: one JSON object a line, with what is bound to the request, also for libraries and tracebacks."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
import warnings

import structlog

from loramux_server.telemetry.logs import child_environment, get_logger
from tests.unit.logged import Logged


def test_json_lines_carry_the_request_id(logged: Logged) -> None:
    logged.start("info", "json")
    logger = get_logger("loramux_server.test")
    with structlog.contextvars.bound_contextvars(request_id="r1"):
        logger.info("served", tokens=3)
        logging.getLogger("sqlalchemy").warning("slow %s", "query")
    logger.debug("hidden")
    logging.getLogger("sqlalchemy").info("hidden too")
    first, second = (json.loads(line) for line in logged.lines())
    assert (first["event"], first["tokens"], first["request_id"], first["level"]) == ("served", 3, "r1", "info")
    assert (second["event"], second["request_id"]) == ("slow query", "r1")


def test_a_traceback_stays_within_its_line(logged: Logged) -> None:
    logged.start("error", "json")
    try:
        raise ValueError("broken")
    except ValueError:
        get_logger("loramux_server.test").exception("failed", error_id="e1")
    (line,) = logged.lines()
    assert "ValueError: broken" in json.loads(line)["exception"]


def test_console_lines_are_for_people(logged: Logged) -> None:
    logged.start("debug", "console")
    get_logger("loramux_server.test").debug("looked", at="it")
    assert "looked" in (text := "\n".join(logged.lines()))
    assert "at=it" in text


ADVICE = "Failed to load a kernel: no module. Please make sure you already `pip install kernels`"


def _libraries_talk() -> None:
    logging.getLogger("some_kernels.cpu").warning(ADVICE)
    logging.getLogger("matplotlib").warning("/home/x/.config/matplotlib is not a writable directory")
    logging.getLogger("matplotlib.font_manager").warning("Matplotlib is building the font cache")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("this will be an argument in the next version", FutureWarning, stacklevel=1)


def test_field_c_advice_of_libraries_is_for_programmers(logged: Logged) -> None:
    logged.start("info", "json")
    _libraries_talk()
    assert logged.lines() == []
    logging.getLogger("some_kernels").error("no GPU. %s", ADVICE)
    logging.getLogger("some_loader").warning("weights are missing")
    get_logger("loramux_server.store").warning("install it with: pip install psycopg")
    assert len(logged.lines()) == 3
    logged.start("debug", "json")
    _libraries_talk()
    assert len(logged.lines()) == 4


def test_field_c_children_log_as_the_server_does(logged: Logged) -> None:
    logged.start("warning", "json")
    code = (
        "import logging; from loramux_server.telemetry.logs import configure_child; configure_child()\n"
        "log = logging.getLogger('loramux_server.engine'); log.info('hidden'); log.warning('shown')\n"
        f"logging.getLogger('some_kernels').warning({ADVICE!r})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    (line,) = done.stderr.splitlines()
    assert json.loads(line)["event"] == "shown"


def test_a_child_that_works_for_a_call_logs_its_id_and_its_own_death(logged: Logged) -> None:
    logged.start("info", "json")
    with structlog.contextvars.bound_contextvars(request_id="r7", job_id="job-1"):
        environment = child_environment()
    code = "from loramux_server.telemetry.logs import configure_child; configure_child(); raise KeyError('gone')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 1
    (line,) = map(json.loads, done.stderr.splitlines())
    assert (line["level"], line["request_id"], line["job_id"]) == ("critical", "r7", "job-1")
    assert line["exception"].endswith("KeyError: 'gone'")


def test_a_thread_that_dies_is_one_line(logged: Logged) -> None:
    logged.start()
    thread = threading.Thread(target=lambda: [][0], name="worker")
    thread.start()
    thread.join()
    (event,) = logged.events()
    assert (event["event"], event["exception"].splitlines()[-1]) == (
        "the thread worker ended by an exception",
        "IndexError: list index out of range",
    )


def test_a_line_that_cannot_be_made_says_so_and_costs_no_caller(logged: Logged) -> None:
    class Bad:
        def __str__(self) -> str:
            raise RuntimeError("no words")

    logged.start()
    logging.getLogger("loramux_server.test").error("%s", Bad())
    get_logger("loramux_server.test").info("good")
    bad, good = logged.events()
    assert (bad["event"], bad["logger"], good["event"]) == (
        "a line of the log cannot be made",
        "loramux_server.test",
        "good",
    )
    assert "no words" in bad["error"]
