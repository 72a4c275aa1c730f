"""Servers on Ray with a tiny base, clusters as an operator starts them, and what their processes do."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from subprocess import STDOUT

from tests.e2e.server_process import NO_MORE, ServerProcess, environment, free_port, kill

PROMPT = "The quick brown fox asks:"
LONG = 20_000
"""Context of the model, so that a stream runs until it is stopped."""
START_SECONDS = 400.0
"""How long a server or a replica may take to start beside others' work."""
LOOPBACK = ("127.", "[::ffff:127.", "[::1]")


def until(condition: Callable[[], object], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "not within its time"
        time.sleep(0.1)


def start(model: Path, home: Path, *flags: str, variables: Mapping[str, str] = NO_MORE) -> ServerProcess:
    common = ("--model", str(model), "--state-dir", str(home / "state"), "--dtype", "float32", "--device", "cpu")
    small = ("--kv-cache-memory", "64MiB", "--adapter-memory", "16MiB", "--threads", "1", "--metrics-listen", "off")
    small = (*small, "--training-checkpoint-seconds", "1")

    server = ServerProcess(home, *common, *small, *flags, variables=variables)
    try:
        server.wait_for("is ready", START_SECONDS)
    except BaseException:
        kill(server)
        raise
    return server


def processes_below(pid: int) -> dict[int, str]:
    """A process and all that it has started, with their command lines."""
    listed = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in listed.splitlines()[1:]]
    parents = {int(child): int(parent) for child, parent, _ in rows}

    def is_below(child: int) -> bool:
        while child > 1:
            if child == pid:
                return True
            child = parents.get(child, 0)
        return False

    return {int(child): args for child, _, args in rows if is_below(int(child))}


def replica_processes(server: ServerProcess) -> list[int]:
    """Process ids of the replicas in the cluster that this server has started."""
    return [pid for pid, args in processes_below(server.process.pid).items() if args.startswith("ray::ServeReplica")]


def listening_elsewhere(pid: int) -> list[str]:
    """What a process and all that it has started listens on beside loopback."""
    ours = {f"pid={found}," for found in processes_below(pid)}
    lines = subprocess.run(["ss", "-ltnpH"], capture_output=True, text=True, check=True).stdout.splitlines()
    mine = [line for line in lines if any(found in line for found in ours)]
    assert mine, "ss shows whose a port is"
    return [line for line in mine if not line.split()[3].startswith(LOOPBACK)]


@dataclass(frozen=True)
class RayCluster:
    """A cluster that runs, of one node on loopback that asks for a token."""

    address: str
    variables: Mapping[str, str]
    """What the environment of its users must have."""
    node: subprocess.Popen[bytes]

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    def processes(self, title: str) -> list[int]:
        """Process ids of those below the node whose title begins so, such as ``ray::ServeReplica``."""
        return [pid for pid, args in processes_below(self.node.pid).items() if args.startswith(title)]


@contextmanager
def ray_cluster(
    home: Path, processors: int, hidden: Path | None = None, port: int | None = None
) -> Iterator[RayCluster]:
    """A cluster as an operator starts it, with ``ray start``, and room for so many replicas. It is ended after.

    To its processes the folder ``hidden`` is empty, as on another host. ``port``: of its head; None: any.
    """
    port = port or free_port()
    variables = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_raylet_start_wait_time_s": "180",  # beside other tests
    }
    flags = {
        "--port": port,
        "--node-ip-address": "127.0.0.1",
        "--num-cpus": processors,
        "--include-dashboard": "false",
        "--object-store-memory": 100 << 20,
        "--ray-client-server-port": free_port(),
        "--dashboard-agent-listen-port": free_port(),
        "--metrics-export-port": free_port(),
    }
    words = [str(word) for pair in flags.items() for word in pair]
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", *words]
    if hidden is not None:
        hide = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"', str(hidden)]
        command = [*hide, *command]
    log = home / "ray.log"
    with log.open("wb") as output:
        node = subprocess.Popen(command, env={**environment(home), **variables}, stdout=output, stderr=STDOUT)
    try:
        _wait_for(node, log)
        yield RayCluster(f"127.0.0.1:{port}", variables, node)
    finally:
        below = processes_below(node.pid)
        node.terminate()
        with suppress(subprocess.TimeoutExpired):
            node.wait(20)
        for pid in below:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        node.wait()


def _wait_for(node: subprocess.Popen[bytes], log: Path) -> None:
    def runs() -> bool:
        assert node.poll() is None, log.read_text()
        return b"Ray runtime started" in log.read_bytes()

    until(runs, 180)
