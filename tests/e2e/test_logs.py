"""A standard error that nobody reads, or that takes nothing, costs lines and neither answers nor the stop."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from loramux import Client, NotFound, Unavailable
from tests.e2e.server_process import environment, free_port
from tests.tiny import write_model

pytestmark = pytest.mark.e2e
PAGE = 4096
CALLS = 120


@contextlib.contextmanager
def server(home: Path, stderr: Any, *flags: str) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A server process that says what it says to ``stderr``, and its address."""
    model, address = write_model(home / "tiny", "llama"), f"127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "loramux_server", "--model", str(model), "--state-dir", str(home / "state")]
    command += ["--device", "cpu", "--listen", address, "--log-format", "json", *flags]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=stderr, env=environment(home))
    try:
        yield process, address
    finally:
        process.kill()
        process.wait()


def test_a_pipe_that_nobody_reads_stops_nothing(tmp_path: Path) -> None:
    ours, theirs = os.pipe()
    fcntl.fcntl(theirs, fcntl.F_SETPIPE_SZ, PAGE)  # which a few lines fill
    with server(tmp_path, theirs, "--metrics-listen", "off") as (process, address):
        os.close(theirs)
        said = b""
        while b'"ready"' not in said:
            said += os.read(ours, PAGE)
        with Client(address, timeout=30) as client:
            for number in range(CALLS):
                if number % 2:
                    assert len(client.tokenize("a b"))
                else:
                    with pytest.raises(NotFound):
                        client.generate("a", adapters=["absent"])
            assert client.generate("a", max_tokens=2).text is not None
        process.terminate()
        assert process.wait(60) == 0
    while piece := os.read(ours, PAGE):
        said += piece
    os.close(ours)
    events = [json.loads(line) for line in said.splitlines()]  # every line is whole
    assert {event["method"] for event in events if event["event"] == "request"} <= {"Tokenize", "GenerateOnce"}


def answers(client: Client) -> bool:
    """Whether the server is there and ready, which it cannot say."""
    try:
        client.tokenize("a")
    except Unavailable:
        return False
    return True


@pytest.mark.slow
def test_a_disk_that_is_full_stops_nothing_and_is_counted(tmp_path: Path) -> None:
    metrics = f"127.0.0.1:{free_port()}"
    with (
        open("/dev/full", "wb") as full,
        server(tmp_path, full, "--metrics-listen", metrics) as (process, address),
        Client(address, timeout=30) as client,
    ):
        while not answers(client):
            assert process.poll() is None
            time.sleep(0.2)
        for _ in range(5):
            assert len(client.tokenize("a b"))
        with urllib.request.urlopen(f"http://{metrics}/metrics", timeout=10) as answer:
            found = re.search(r"^loramux_log_lines_dropped_total (\S+)$", answer.read().decode(), re.MULTILINE)
        assert found is not None
        assert float(found[1]) >= 5
        process.terminate()
        assert process.wait(60) == 0
