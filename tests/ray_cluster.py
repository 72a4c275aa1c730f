"""A Ray cluster of the tests' own, which servers join: one node on loopback that asks for a token."""

from __future__ import annotations

import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RayCluster:
    """A running cluster."""

    address: str
    variables: Mapping[str, str]
    """What a process needs to join it."""
    node: subprocess.Popen[bytes]

    def processes(self, title: str) -> list[int]:
        """Process ids of those below the node whose title begins so, such as ``ray::ServeReplica``."""
        listed = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True).stdout
        rows = [line.split(None, 2) for line in listed.splitlines()[1:]]
        parents = {int(pid): int(parent) for pid, parent, _ in rows}

        def ours(pid: int) -> bool:
            while pid > 1 and pid != self.node.pid:
                pid = parents.get(pid, 0)
            return pid == self.node.pid

        return [int(pid) for pid, _, args in rows if args.startswith(title) and ours(int(pid))]


@contextmanager
def ray_cluster(processors: int, home: Path, environment: Mapping[str, str]) -> Iterator[RayCluster]:
    """Start a cluster of one node that has so many processors for replicas, and end it."""
    port = free_port()
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
    ray = Path(sys.executable).with_name("ray")
    with (home / "ray.log").open("wb") as log:
        node = subprocess.Popen(
            [ray, "start", "--head", "--block", *words],
            env={**environment, **variables},
            stdout=log,
            stderr=log,
        )
        try:
            _wait_for(port, node, home / "ray.log")
            yield RayCluster(f"127.0.0.1:{port}", variables, node)
        finally:
            node.send_signal(signal.SIGTERM)
            try:
                node.wait(30)
            except subprocess.TimeoutExpired:
                node.kill()


def _wait_for(port: int, node: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 180
    while b"Ray runtime started" not in log.read_bytes():
        assert node.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
