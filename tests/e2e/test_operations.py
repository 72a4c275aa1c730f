"""What operators meet: floods, descriptors that run out, and databases that are damaged, newer, locked or away."""

from __future__ import annotations

import asyncio
import os
import resource
import shutil
import socket
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import grpc
import httpx2
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

import loramux
from loramux.v1 import inference_pb2, inference_pb2_grpc
from loramux_server.store.store import Store
from tests.e2e.server_process import ServerProcess, kill, run_server, server_process
from tests.e2e.test_random_kills_real import Real
from tests.postgres import BIN, MISSING, Postgres
from tests.soak.invariants import memory
from tests.tiny import write_model
from tests.unit.services.adapter_files import write_adapter
from tests.unit.store.test_postgres import postgres, url

__all__ = ["postgres", "url"]

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

CALLS = 10_000
PLACES = ("--max-running", "8", "--max-queue", "32")
FLAGS = ("--device", "cpu", "--dtype", "float32", "--kv-cache-memory", "16MiB", *PLACES)
DOORS = ("--metrics-listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0")
DATABASE = "loramux.db"
ASK = {"model": "base", "prompt": "the quick brown fox", "max_tokens": 4}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("operations") / "model", "llama")


@pytest.fixture(scope="module")
def server(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    home = tmp_path_factory.mktemp("home")
    with server_process(home, *FLAGS, *DOORS, "--model", str(model), "--state-dir", str(home / "state")) as running:
        running.wait_for("is ready")
        yield running
        assert not [line for line in running.lines if "Traceback" in line or "call failed" in line]


def answers(server: ServerProcess) -> bool:
    """Whether both doors generate."""
    with loramux.Client(server.address, timeout=60) as client:
        said = client.generate("the quick brown fox", max_tokens=4).choices[0].text
    done = httpx2.post(f"http://{server.http_address}/v1/completions", json=ASK, timeout=60)
    return bool(done.json()["choices"][0]["text"] == said)


async def test_ten_thousand_calls_at_once(server: ServerProcess) -> None:
    """Each is answered or refused with a time to try again; memory stays bounded, and then there is room again."""
    assert await asyncio.to_thread(answers, server)
    before = memory(server.process.pid)
    channels = [grpc.aio.insecure_channel(server.address, [("grpc.use_local_subchannel_pool", 1)]) for _ in range(20)]
    stubs = [inference_pb2_grpc.InferenceServiceStub(channel) for channel in channels]
    request = inference_pb2.GenerateRequest(prompt="the quick brown fox", max_tokens=16, ignore_eos=True)

    async def one(number: int) -> str:
        try:
            await stubs[number % len(stubs)].GenerateOnce(request, timeout=300)
        except grpc.aio.AioRpcError as error:
            retry, status = error_details_pb2.RetryInfo(), rpc_status.from_call(error)
            later = status is not None and any(detail.Unpack(retry) for detail in status.details)
            return error.code().name if later else f"{error.code().name} for good"
        return "OK"

    ends = Counter(await asyncio.gather(*(one(number) for number in range(CALLS))))
    assert ends.keys() == {"OK", "RESOURCE_EXHAUSTED"}, ends
    assert ends["OK"] >= 40
    for channel in channels:
        await channel.close()
    assert memory(server.process.pid) - before < 256 << 20
    assert await asyncio.to_thread(answers, server)


async def test_a_thousand_requests_over_http_at_once(server: ServerProcess) -> None:
    limits = httpx2.Limits(max_connections=1000)
    async with httpx2.AsyncClient(base_url=f"http://{server.http_address}", limits=limits, timeout=300) as client:
        asked = [client.post("/v1/completions", json={**ASK, "max_tokens": 16}) for _ in range(1000)]
        done = await asyncio.gather(*asked)
    assert {answer.status_code for answer in done} <= {200, 429}
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in done if answer.status_code == 429)
    assert sum(answer.status_code == 200 for answer in done) >= 8
    assert await asyncio.to_thread(answers, server)


def test_descriptors_that_run_out(server: ServerProcess) -> None:
    """Connections beyond the limit of the process wait or fail; calls on open ones go on, and both doors recover."""
    pid = server.process.pid
    usual = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    said = len(server.lines)
    with loramux.Client(server.address, timeout=60) as client:
        assert client.generate("x", max_tokens=2).choices
        held = len([*Path(f"/proc/{pid}/fd").iterdir()])
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (held + 12, usual[1]))
        crowd: list[socket.socket] = []
        try:
            for address in (server.address, server.http_address) * 40:
                host, _, port = address.rpartition(":")
                crowd.append(socket.create_connection((host, int(port)), timeout=10))
            assert client.generate("x", max_tokens=2).choices
        finally:
            for each in crowd:
                each.close()
            resource.prlimit(pid, resource.RLIMIT_NOFILE, usual)
    assert answers(server)
    assert len(server.lines) - said < 200, "the log is full of it"


@pytest.fixture
def group() -> Iterator[Path]:
    """A control group of version 1 that limits memory, for whoever is moved into it."""
    folder = Path("/sys/fs/cgroup/memory") / f"loramux-test-{os.getpid()}"
    try:
        folder.mkdir()
        (folder / "memory.limit_in_bytes").write_text(str(8 << 30))
    except OSError:
        pytest.skip("control groups of version 1 cannot be made here")
    yield folder
    while folder.exists():  # until the last process has left
        with suppress(OSError):
            folder.rmdir()


def test_memory_that_is_nearly_used_up(group: Path, model: Path, tmp_path: Path) -> None:
    """The server is not ready, tells why, goes on with what comes, and is ready again once there is memory."""
    limit = group / "memory.limit_in_bytes"
    with server_process(tmp_path, *FLAGS, *DOORS, "--model", str(model), "--state-dir", str(tmp_path / "s")) as server:
        (group / "cgroup.procs").write_text(str(server.process.pid))
        server.wait_for("is ready")

        def ready() -> bool:
            return httpx2.get(f"http://{server.http_address}/health/ready", timeout=60).status_code == 200

        assert ready()
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        files = int(stat["total_inactive_file"]) + int(stat["total_active_file"])
        held = int((group / "memory.usage_in_bytes").read_text()) - files
        limit.write_text(str(round(held / 0.97)))
        server.wait_for("memory is nearly used up")
        with loramux.Client(server.address, timeout=60) as client:
            assert client.health() == "NOT_SERVING"
            assert not ready()
            assert httpx2.get(f"http://{server.http_address}/health/live", timeout=60).status_code == 200
            assert client.generate("x", max_tokens=2).choices
            limit.write_text(str(8 << 30))
            server.wait_for("there is memory again")
            assert client.health() == "SERVING"
            assert ready()


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: 4096 * 3 + 100])


def _scribble(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[4096 : 4096 * 4] = os.urandom(4096 * 3)
    path.write_bytes(data)


def _replace(path: Path) -> None:
    path.write_bytes(b"not a database at all" * 500)


def _newer(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'zzzz'")
    connection.close()


@pytest.mark.parametrize("damage", [_cut, _scribble, _replace, _newer])
def test_a_damaged_database_is_refused_and_left_alone(
    model: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    state = tmp_path / "state"
    Store.open(state).close()
    damage(state / DATABASE)
    found = (state / DATABASE).read_bytes()
    flags = ("--listen", "127.0.0.1:0", "--metrics-listen", "off", "--state-dir", str(state), "--model", str(model))
    code, lines = run_server(tmp_path, *FLAGS, *flags)
    assert code == 1, lines
    assert lines[-1].startswith("loramux: ")
    assert not [line for line in lines if "Traceback" in line]
    assert (state / DATABASE).read_bytes() == found


def test_a_start_without_the_journal_of_a_crash(model: Path, tmp_path: Path) -> None:
    """What only the lost journal held is gone; what is there is whole, and nothing is made up."""
    flags = (*FLAGS, "--metrics-listen", "off", "--model", str(model), "--state-dir", str(tmp_path / "state"))
    with server_process(tmp_path, *flags) as first:
        first.wait_for("is ready")
        with loramux.Client(first.address, timeout=60) as client:
            client.datasets.upload([{"prompt": "a", "completion": "b"}])
        kill(first)
    for file in (tmp_path / "state").glob(f"{DATABASE}-*"):
        file.unlink()
    with server_process(tmp_path, *flags) as again:
        again.wait_for("is ready")
        with loramux.Client(again.address, timeout=60) as client:
            assert len(client.datasets.list()) <= 1
            assert client.datasets.upload([{"prompt": "a", "completion": "b"}]).id
            assert client.generate("x", max_tokens=2).choices


def test_a_database_that_somebody_holds_is_waited_for(model: Path, tmp_path: Path) -> None:
    """A change meanwhile is UNAVAILABLE and asks to be tried again; what needs no change is answered."""
    flags = (*FLAGS, "--metrics-listen", "off", "--model", str(model), "--state-dir", str(tmp_path / "state"))
    with server_process(tmp_path, *flags) as server:
        server.wait_for("is ready")
        other = sqlite3.connect(tmp_path / "state" / DATABASE, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with loramux.Client(server.address, timeout=60) as client:
            with pytest.raises(loramux.Unavailable) as caught:
                client.datasets.upload([{"prompt": "a", "completion": "b"}])
            assert caught.value.retry_after
            assert client.generate("x", max_tokens=2).choices
            other.execute("ROLLBACK")
            other.close()
            assert client.datasets.upload([{"prompt": "a", "completion": "b"}]).id


@pytest.mark.skipif(shutil.which("chattr") is None, reason="needs chattr")
def test_a_state_directory_that_cannot_be_written(model: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    Store.open(state).close()
    flags = ("--listen", "127.0.0.1:0", "--metrics-listen", "off", "--state-dir", str(state), "--model", str(model))
    if os.system(f"chattr +i {state} {state}/* 2>/dev/null"):
        pytest.skip("this file system knows no immutable files")
    try:
        code, lines = run_server(tmp_path, *FLAGS, *flags)
    finally:
        os.system(f"chattr -i {state} {state}/*")
    assert code == 1, lines
    assert str(state) in lines[-1]


@pytest.mark.skipif(BIN is None, reason=MISSING)
def test_a_database_that_is_away_for_a_while(model: Path, tmp_path: Path, postgres: Postgres, url: str) -> None:
    """Adapters in use go on, all else is UNAVAILABLE, and nobody starts the server again."""
    flags = (*FLAGS, "--metrics-listen", "off", "--model", str(model), "--state-dir", str(tmp_path / "state"))
    with server_process(tmp_path, *flags, "--database-url", url) as server:
        server.wait_for("is ready")
        with loramux.Client(server.address, timeout=60) as client:
            for name, b in (("warm", 0.25), ("cold", 0.5)):
                client.adapters.upload(name, write_adapter(tmp_path / name, Real.info, b=b))
            said = client.generate("x", adapters=["warm"], max_tokens=4).choices[0].token_ids
            postgres.stop()
            try:
                for _ in range(5):
                    assert client.generate("x", adapters=["warm"], max_tokens=4).choices[0].token_ids == said
                with pytest.raises(loramux.Unavailable):
                    client.generate("x", adapters=["cold"], max_tokens=4)
                with pytest.raises(loramux.Unavailable):
                    client.datasets.upload([{"prompt": "a", "completion": "b"}])
            finally:
                postgres.start()
            deadline = time.monotonic() + 60
            while True:
                try:
                    assert client.generate("x", adapters=["cold"], max_tokens=4).choices
                    assert client.datasets.upload([{"prompt": "a", "completion": "b"}]).id
                    break
                except loramux.Unavailable:
                    assert time.monotonic() < deadline
        assert not [line for line in server.lines if "Traceback" in line]
