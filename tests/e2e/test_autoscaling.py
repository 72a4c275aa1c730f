"""Replicas whose number follows the load, in a real Ray cluster of this host."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from threading import Event

import pytest

from loramux import Client, Unavailable
from tests.e2e.ray_servers import LONG, PROMPT, START_SECONDS, start, until
from tests.e2e.server_process import kill
from tests.tiny import write_model

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.cluster,
    pytest.mark.timeout(900),
    pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed"),
]

FLAGS = (
    *("--backend", "ray", "--autoscale", "1..2", "--max-running", "4"),
    *("--autoscale-up-seconds", "1", "--autoscale-down-seconds", "1", "--drain-timeout", "2"),
)
FAST = {"RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "1"}


def test_replicas_follow_the_load(tmp_path: Path) -> None:
    """Many callers make a second replica start, few make it end; a stream there finishes, or fails with a reason."""
    model = write_model(tmp_path / "model", "llama", max_position_embeddings=LONG)
    server = start(model, tmp_path, *FLAGS, variables=FAST)
    many, few = Event(), Event()
    try:
        with Client(server.address) as client, ThreadPoolExecutor(6) as callers:

            def ask(stop: Event, tokens: int) -> list[str]:
                """How streams ended, one after the other, until they are to stop."""
                ends = []
                while not stop.is_set():
                    try:
                        with client.stream(PROMPT, max_tokens=tokens, ignore_eos=True) as chunks:
                            for _ in chunks:
                                if stop.is_set():
                                    break
                            else:
                                ends.append(chunks.completion.finish_reason)
                    except Unavailable as error:
                        ends.append(error.reason)
                return ends

            def states() -> list[str]:
                return [replica.state for replica in client.replicas()]

            assert states() == ["ready"]
            asked = [callers.submit(ask, many, 100) for _ in range(4)]
            try:
                until(lambda: states() == ["ready", "ready"], START_SECONDS)
                until(lambda: all(replica.requests_running for replica in client.replicas()))
                asked += [callers.submit(ask, few, LONG // 2) for _ in range(2)]
                many.set()
                until(lambda: states() == ["ready"])
                assert client.generate(PROMPT, max_tokens=4, ignore_eos=True).usage.completion_tokens == 4
            finally:
                many.set()
                few.set()
            ends = [end for call in asked for end in call.result()]
            assert set(ends) <= {"length", "REPLICA_LOST"}, ends
            assert client.health() == "SERVING"
    finally:
        kill(server)
