"""Servers as child processes: a free port, starting, waiting until one answers, ending."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import IO

from loramux import LoramuxError

START_LIMIT = 900.0
"""Seconds that a server may take to be ready."""
STOP_LIMIT = 20.0


def free_port() -> int:
    """A port of this host that was free just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(
    command: Sequence[str], environment: Mapping[str, str], output: int | IO[bytes] = 2
) -> subprocess.Popen[bytes]:
    """Start a server with ``environment`` on top of ours. Its output goes where this process's errors go, or there."""
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env={**os.environ, **environment}
    )


async def wait_until(
    ready: Callable[[], Awaitable[bool]], server: subprocess.Popen[bytes] | None, every: float = 0.2
) -> None:
    """Return once ``ready`` says so; errors of a connection count as no. Raises RuntimeError if the server ends."""
    deadline = time.monotonic() + START_LIMIT
    while time.monotonic() < deadline:
        if server is not None and server.poll() is not None:
            raise RuntimeError(f"the server ended with {server.returncode}")
        try:
            if await ready():
                return
        except (LoramuxError, OSError):
            pass  # not listening yet
        await asyncio.sleep(every)
    raise RuntimeError(f"the server was not ready after {START_LIMIT:.0f} s")


def ended(server: subprocess.Popen[bytes]) -> None:
    """Stop a server of ours, by force if it takes too long."""
    server.terminate()
    try:
        server.wait(STOP_LIMIT)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()
