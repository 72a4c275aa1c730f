"""A server as its operator runs it: a process with a command line, standard error, signals and an exit code."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from loramux_server.host.failpoints import VARIABLE
from tests.cache import kept_between_runs

NO_MORE: Mapping[str, str] = {}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment(home: Path) -> dict[str, str]:
    """What servers and commands of these tests get: no settings, a home of their own, and what is compiled once."""
    kept = {k: v for k, v in os.environ.items() if not k.upper().startswith("LORAMUX_")}
    fixed = {"LORAMUX_HTTP_LISTEN": "off", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    return {**kept, "HOME": str(home), "XDG_CACHE_HOME": str(kept_between_runs()), **fixed}


class ServerProcess:
    """A running ``python -m loramux_server``; what it says is collected line by line."""

    def __init__(
        self,
        home: Path,
        *flags: str,
        failpoint: str = "",
        variables: Mapping[str, str] = NO_MORE,
        module: str = "loramux_server",
        wrapper: Sequence[str] = (),
    ) -> None:
        """``module`` is what runs the server's command line, ``wrapper`` the command that runs that."""
        self.address = f"127.0.0.1:{free_port()}"
        command = [*wrapper, sys.executable, "-m", module, "serve", "--listen", self.address, *flags]
        env = {**environment(home), **({VARIABLE: failpoint} if failpoint else {}), **variables}
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env)
        self.lines: list[str] = []
        self.changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self.changed:
                self.lines.append(line.rstrip("\n"))
                self.changed.notify_all()
        with self.changed:
            self.lines.append("<end>")
            self.changed.notify_all()

    def wait_for(self, text: str, timeout: float = 180) -> None:
        """Return when a line holds ``text``; fail when the server ends first."""
        with self.changed:
            found = self.changed.wait_for(
                lambda: any(text in line for line in self.lines) or self.lines[-1:] == ["<end>"], timeout
            )
            assert found, f"no {text!r} within {timeout} s:\n" + "\n".join(self.lines)
            assert any(text in line for line in self.lines), "\n".join(self.lines)

    def metrics(self) -> str:
        """The metrics page, once the server has said where it is."""
        with urllib.request.urlopen(self.metrics_url, timeout=10) as answer:
            return str(answer.read().decode())

    @property
    def metrics_url(self) -> str:
        """Where the metrics are, once the server has said so."""
        self.wait_for("/metrics")
        with self.changed:
            return next(line for line in self.lines if "/metrics" in line).split()[-1]

    @property
    def http_address(self) -> str:
        """``host:port`` of the HTTP door, once the server has said where it is."""
        self.wait_for("  HTTP ")
        with self.changed:
            line = next(line for line in self.lines if "  HTTP " in line)
        return line.split()[-1].removeprefix("http://").removesuffix("/v1")

    def finish(self, timeout: float = 60) -> int:
        """Wait for the end; gives the exit code."""
        code = self.process.wait(timeout)
        self._reader.join(timeout)
        return code


@contextmanager
def server_process(
    home: Path,
    *flags: str,
    failpoint: str = "",
    variables: Mapping[str, str] = NO_MORE,
    module: str = "loramux_server",
) -> Iterator[ServerProcess]:
    server = ServerProcess(home, *flags, failpoint=failpoint, variables=variables, module=module)
    try:
        yield server
    finally:
        kill(server)


def kill(server: ServerProcess) -> None:
    """End a server that may have ended already, without ceremony."""
    if server.process.poll() is None:
        server.process.kill()
    server.finish()


def run_server(home: Path, *flags: str, timeout: float = 60) -> tuple[int, list[str]]:
    """Run a server that is expected to refuse; gives its exit code and its lines."""
    done = subprocess.run(
        [sys.executable, "-m", "loramux_server", *flags],
        env=environment(home),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    return done.returncode, done.stderr.splitlines()
