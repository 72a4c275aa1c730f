"""The demo's own server: a process on free ports, always stopped again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import urllib.request
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from socket import socket

from prometheus_client.parser import text_string_to_metric_families

READY = "is ready."
STOP_TIMEOUT = 20.0

_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""For addresses of this machine, which no proxy of the environment can reach."""

SHARE = "0.7"
"""Of the time while the second client streams: people wait for the training, and still see it answer."""


class ServerFailed(Exception):
    """The server did not start; the message holds its last words."""


class DemoServer:
    """Addresses of a running server, and its metrics."""

    def __init__(self, address: str, metrics: str, http: str) -> None:
        self.address = address
        self.metrics_address = metrics
        self.console = f"http://{http}/"
        """The page for browsers."""

    def metrics(self) -> dict[str, float]:
        """Every sample now, named as Prometheus writes it: ``name{label="value"}``."""
        with _DIRECT.open(f"http://{self.metrics_address}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        found = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                labels = ",".join(f'{key}="{value}"' for key, value in sorted(sample.labels.items()))
                found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
        return found


@contextmanager
def demo_server(state_dir: Path, show: Callable[[str], None]) -> Iterator[DemoServer]:
    """Start a server, give it once it is ready, stop it in the end. ``show`` gets the lines it says until then."""
    address, metrics, http = (f"127.0.0.1:{port}" for port in _free_ports(3))
    command = [sys.executable, "-m", "loramux_server", "serve", "--listen", address, "--metrics-listen", metrics]
    command += ["--http-listen", http]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("LORAMUX_")}
    last: deque[str] = deque(maxlen=8)
    process = subprocess.Popen(
        [*command, "--state-dir", str(state_dir), "--drain-timeout", "1", "--training-share", SHARE],
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
        env=environment,
        # Ctrl-C and a closing terminal are for the demo, which then stops the server itself.
        start_new_session=True,
    )
    try:
        assert process.stderr is not None
        for line in process.stderr:
            last.append(line.rstrip())
            if READY in line:
                break
            if line.strip():
                show(line.rstrip())
        else:
            raise ServerFailed("\n".join(last))
        # Nobody reads what it says from now on, and a full pipe would stop it.
        threading.Thread(target=deque, args=(process.stderr, 0), daemon=True).start()
        yield DemoServer(address, metrics, http)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _free_ports(count: int) -> list[int]:
    probes = [socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
    finally:
        for probe in probes:
            probe.close()
