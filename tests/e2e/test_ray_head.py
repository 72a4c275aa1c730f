"""The head of a Ray cluster dies while requests run, and comes back."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import pytest

from loramux import Client, Unavailable
from tests.e2e.ray_servers import LONG, PROMPT, RayCluster, processes_below, ray_cluster, start, until
from tests.e2e.server_process import kill
from tests.tiny import write_model

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.cluster,
    pytest.mark.timeout(900),
    pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed"),
]

BOUND = 40.0
"""Seconds within which a call must have failed: those until the head counts as away and replicas were asked, twice."""


def kill_all(cluster: RayCluster) -> None:
    """End each process of the cluster at once, as the loss of its host does."""
    for pid in (cluster.node.pid, *processes_below(cluster.node.pid)):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_a_server_without_a_head_says_so_and_ends(tmp_path: Path) -> None:
    """What runs and what comes fails soon with the reason; started again beside a new head, the server serves."""
    model = write_model(tmp_path / "model", "llama", max_position_embeddings=LONG)
    with ray_cluster(tmp_path, 1) as cluster:
        flags = ("--backend", "ray", "--ray-address", cluster.address)
        server = start(model, tmp_path, *flags, variables=cluster.variables)
        try:
            with Client(server.address) as client, ThreadPoolExecutor(2) as callers:

                def fail(max_tokens: int) -> tuple[str, float]:
                    began = time.monotonic()
                    with pytest.raises(Unavailable) as error:
                        client.generate(PROMPT, max_tokens=max_tokens, ignore_eos=True, timeout=300)
                    return error.value.reason, time.monotonic() - began

                # The client asks once more where it is told that it may.
                reasons = {"REPLICA_LOST", "ENGINE_RESTARTING", "RAY_UNAVAILABLE"}
                running = callers.submit(fail, LONG // 2)
                until(lambda: any(replica.requests_running for replica in client.replicas()))
                kill_all(cluster)
                coming = callers.submit(fail, 4)
                for call in (running, coming):
                    reason, seconds = call.result(BOUND)
                    assert reason in reasons, (reason, seconds)
                until(lambda: client.health() == "NOT_SERVING", 20)
                assert fail(4)[0] in reasons
            assert server.finish(90) == 1, "\n".join(server.lines)
            assert any(line.startswith("loramux: Ray does not run the replicas") for line in server.lines), server.lines
        finally:
            kill(server)
    with ray_cluster(tmp_path, 1, port=cluster.port) as back:
        server = start(model, tmp_path, *flags, variables=back.variables)
        try:
            with Client(server.address) as client:
                assert client.generate(PROMPT, max_tokens=4, ignore_eos=True).usage.completion_tokens == 4
        finally:
            kill(server)
