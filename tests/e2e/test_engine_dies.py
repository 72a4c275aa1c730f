"""The engine's process is killed under load: what was in flight is told so, and everything goes on by itself."""

from __future__ import annotations

import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

import loramux
from loramux import Client
from loramux_server.engine.transport.process import MODULE
from tests.e2e.server_process import ServerProcess
from tests.e2e.test_main_job import RECIPE, ROWS

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(300)]
STREAMS = 3


def engine_pid(server: ServerProcess) -> int:
    """The child of the server that runs the engine."""
    for task in Path(f"/proc/{server.process.pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            if MODULE.encode() in Path(f"/proc/{child}/cmdline").read_bytes():
                return int(child)
    raise AssertionError("the server has no engine process")


class HealthLog:
    """What the health service says, as it changes."""

    def __init__(self, address: str) -> None:
        self.seen: list[int] = []
        self.changed = threading.Condition()
        self._channel = grpc.insecure_channel(address)
        self._call = health_pb2_grpc.HealthStub(self._channel).Watch(health_pb2.HealthCheckRequest())
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        try:
            for answer in self._call:
                with self.changed:
                    self.seen.append(answer.status)
                    self.changed.notify_all()
        except grpc.RpcError:
            return  # closed below

    def wait_for(self, *statuses: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: self.seen[: len(statuses)] == list(statuses), 60), self.seen

    def close(self) -> None:
        self._call.cancel()
        self._channel.close()


def test_killed_under_load(server: ServerProcess, client: Client) -> None:
    """Streams end with UNAVAILABLE, health follows, the next request works, the job goes on from its checkpoint."""
    question = [{"role": "user", "content": "When does the mill open?"}]
    before = client.generate(messages=question, max_tokens=6, temperature=0.0).text
    health = HealthLog(server.address)
    health.wait_for(health_pb2.HealthCheckResponse.SERVING)
    started = threading.Semaphore(0)

    def stream() -> type[BaseException] | None:
        with Client(server.address) as other:
            try:
                for i, _ in enumerate(other.stream("Once upon a time", max_tokens=1500, ignore_eos=True)):
                    if i == 2:
                        started.release()
            except loramux.LoramuxError as error:
                return type(error)
        return None

    job = client.train("survivor", data=ROWS, epochs=12, **RECIPE)
    paused = False
    for event in job.events():
        if event.type == "step" and event.step >= 3:
            # A pause leaves a checkpoint behind, whatever the clock says.
            job.pause()
            paused = True
            break
    assert paused
    job.resume()
    next(e for e in job.events(after_sequence=event.sequence) if e.type == "step")
    with ThreadPoolExecutor(STREAMS) as pool:
        streams = [pool.submit(stream) for _ in range(STREAMS)]
        for _ in range(STREAMS):
            assert started.acquire(timeout=60)
        os.kill(engine_pid(server), signal.SIGKILL)
        assert "survivor" in [j.name for j in client.jobs.list()]  # the front answers all the while
        assert client.info().base_fingerprint
        assert [s.result(60) for s in streams] == [loramux.Unavailable] * STREAMS
    serving, not_serving = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
    health.wait_for(serving, not_serving, serving)
    health.close()
    assert client.generate(messages=question, max_tokens=6, temperature=0.0).text == before
    assert job.wait(timeout=90).name == "survivor"
    events = list(job.events())
    states = [e.state for e in events if e.state]
    assert states[:5] == ["queued", "running", "paused", "queued", "running"]
    assert states[5:7] == ["queued", "running"]
    again = [e.message for e in events if "goes on after step" in e.message]
    assert len(again) == 2
    assert all(int(message.rsplit(" ", 1)[1]) >= 3 for message in again)
    assert {e.step for e in events if e.type == "step"} == set(range(1, 13))
