"""A server whose engines are two replicas in a real Ray cluster of this host, beside one with an embedded engine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from loramux import Client, DeadlineExceeded, NotFound, Replica, Unavailable
from tests.e2e.server_process import ServerProcess, kill
from tests.tiny import write_adapter, write_model

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed"),
]

PROMPT = "The quick brown fox asks:"
ADAPTERS = tuple(f"a{number}" for number in range(6))
LONG = 20_000
"""Context of the model, so that a stream runs until it is stopped."""


def until(condition: Callable[[], object], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "not within its time"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"), "llama", max_position_embeddings=LONG)


def start(model: Path, home: Path, *flags: str) -> ServerProcess:
    common = ("--model", str(model), "--state-dir", str(home / "state"), "--dtype", "float32", "--device", "cpu")
    small = ("--kv-cache-memory", "64MiB", "--adapter-memory", "16MiB", "--threads", "1", "--metrics-listen", "off")
    small = (*small, "--training-checkpoint-seconds", "1")

    server = ServerProcess(home, *common, *small, *flags)
    try:
        server.wait_for("is ready", 400)
    except BaseException:
        kill(server)
        raise
    return server


def upload(server: ServerProcess, adapters: Path) -> None:
    with Client(server.address) as client:
        for name in ADAPTERS:
            client.adapters.upload(name, adapters / name)


@pytest.fixture(scope="module")
def adapters(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from loramux_server.model.base.quantize import prepare_base

    base = prepare_base(str(model), tmp_path_factory.mktemp("nf4"))
    folder = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate(ADAPTERS):
        write_adapter(folder / name, base, seed=seed)
    return folder


@pytest.fixture(scope="module")
def embedded(model: Path, adapters: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    server = start(model, tmp_path_factory.mktemp("embedded"))
    try:
        upload(server, adapters)
        with Client(server.address) as client:
            yield client
    finally:
        kill(server)


@pytest.fixture(scope="module")
def server(model: Path, adapters: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    server = start(model, tmp_path_factory.mktemp("ray"), "--backend", "ray", "--replicas", "2")
    try:
        upload(server, adapters)
        yield server
    finally:
        kill(server)


@pytest.fixture
def client(server: ServerProcess) -> Iterator[Client]:
    with Client(server.address) as client:
        until(lambda: [replica.state for replica in client.replicas()] == ["ready", "ready"])
        yield client


def by_id(client: Client) -> dict[str, Replica]:
    return {replica.id: replica for replica in client.replicas()}


def replica_processes(server: ServerProcess) -> list[int]:
    """Process ids of the replicas: parents of the engines that this server's Ray has started."""
    listed = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in listed.splitlines()[1:]]
    parents = {int(pid): int(parent) for pid, parent, _ in rows}

    def ours(pid: int) -> bool:
        while pid > 1:
            if pid == server.process.pid:
                return True
            pid = parents.get(pid, 0)
        return False

    return [int(pid) for pid, _, args in rows if args.startswith("ray::ServeReplica") and ours(int(pid))]


def test_answers_are_those_of_an_embedded_engine(embedded: Client, client: Client) -> None:
    for stack in ([], ["a0"], ["a1", ("a2", 0.5)]):
        asked = {"adapters": stack, "max_tokens": 24, "temperature": 0.0}
        expected = embedded.generate(PROMPT, **asked)
        found = client.generate(PROMPT, **asked)
        assert (found.text, found.usage.completion_tokens) == (expected.text, expected.usage.completion_tokens)
        with client.stream(PROMPT, **asked) as chunks:
            assert "".join(chunk.text for chunk in chunks) == expected.text
        score = client.score(PROMPT, " brown fox", adapters=stack)
        assert score.logprobs == pytest.approx(embedded.score(PROMPT, " brown fox", adapters=stack).logprobs, abs=1e-4)
        ours, theirs = (c.embed([PROMPT], adapters=stack).vectors[0] for c in (client, embedded))
        assert list(ours) == pytest.approx(list(theirs), abs=1e-4)


def test_errors_keep_their_details(client: Client) -> None:
    with pytest.raises(NotFound) as unknown:
        client.generate(PROMPT, adapters=["nobody"])
    assert unknown.value.reason == "ADAPTER_NOT_FOUND"
    with pytest.raises(NotFound) as no_replica:
        client.drain_replica("nobody")
    assert no_replica.value.reason == "REPLICA_NOT_FOUND"
    with pytest.raises(DeadlineExceeded):
        client.generate(PROMPT, max_tokens=LONG // 2, ignore_eos=True, timeout=1.0)


def test_a_cancelled_stream_ends_in_the_engine(client: Client) -> None:
    with client.stream(PROMPT, max_tokens=LONG // 2, ignore_eos=True) as chunks:
        next(iter(chunks))
        until(lambda: sum(replica.requests_running for replica in client.replicas()) == 1, 10)
    until(lambda: sum(replica.requests_running for replica in client.replicas()) == 0, 10)
    until(lambda: sum(replica.queued_tokens for replica in client.replicas()) == 0, 10)


def test_requests_go_where_their_adapters_are(client: Client) -> None:
    for name in ADAPTERS:
        client.generate(PROMPT, adapters=[name], max_tokens=2)
    # Each adapter was loaded by one replica, and stays the only one to hold it.
    held = Counter({id: replica.adapters for id, replica in by_id(client).items()})
    until(lambda: sum(replica.adapters for replica in client.replicas()) >= len(ADAPTERS), 20)
    before = {id: replica.adapters for id, replica in by_id(client).items()}
    for _ in range(3):
        for name in ADAPTERS:
            client.generate(PROMPT, adapters=[name], max_tokens=2)
    assert {id: replica.adapters for id, replica in by_id(client).items()} == before, held


def test_ray_listens_on_loopback_and_asks_for_a_token(server: ServerProcess, client: Client) -> None:
    listening = subprocess.run(["ss", "-ltnpH"], capture_output=True, text=True, check=True).stdout.splitlines()
    ours = {f"pid={pid}," for pid in replica_processes(server)}
    public = [
        line
        for line in listening
        if ("gcs_server" in line or "raylet" in line or any(pid in line for pid in ours))
        and not line.split()[3].startswith(("127.0.0.1:", "[::ffff:127.0.0.1]:", "[::1]:"))
    ]
    # Ray Serve's replicas have one port on all interfaces, which answers nobody without the cluster's token.
    import grpc

    for line in public:
        assert any(pid in line for pid in ours), line
        port = line.split()[3].rpartition(":")[2]
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            call = channel.unary_unary("/ray.serve.ASGIService/HandleRequest")
            with pytest.raises(grpc.RpcError) as refused:
                call(b"", timeout=10)
            assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_a_replica_that_is_killed_takes_only_its_own_streams(server: ServerProcess, client: Client) -> None:
    streams = [client.stream(PROMPT, max_tokens=LONG // 2, ignore_eos=True) for _ in range(2)]
    iterators = [iter(stream) for stream in streams]
    for chunks in iterators:
        next(chunks)
    until(lambda: [replica.requests_running for replica in client.replicas()] == [1, 1], 20)
    os.kill(replica_processes(server)[0], signal.SIGKILL)
    reasons = []
    for chunks in iterators:
        try:
            for _ in range(100):
                next(chunks)
        except Unavailable as error:
            reasons.append(error.reason)
    assert reasons == ["REPLICA_LOST"]
    for _ in range(4):
        assert client.generate(PROMPT, adapters=["a0"], max_tokens=4, ignore_eos=True).usage.completion_tokens == 4
    for stream in streams:
        stream.close()
    until(lambda: [replica.state for replica in client.replicas()] == ["ready", "ready"])


def test_a_drained_replica_finishes_and_is_replaced(client: Client) -> None:
    with client.stream(PROMPT, max_tokens=400, ignore_eos=True) as chunks:
        iterator = iter(chunks)
        next(iterator)
        until(lambda: any(replica.requests_running for replica in client.replicas()), 10)
        (busy,) = [replica.id for replica in client.replicas() if replica.requests_running]
        client.drain_replica(busy)
        assert by_id(client)[busy].state == "draining"
        assert client.generate(PROMPT, max_tokens=2, ignore_eos=True).usage.completion_tokens == 2
        assert sum(1 for _ in iterator) > 0
    until(lambda: busy not in by_id(client))
    until(lambda: [replica.state for replica in client.replicas()] == ["ready", "ready"])


def test_a_job_goes_on_elsewhere_when_its_replica_is_drained(client: Client, tmp_path: Path) -> None:
    rows = [{"prompt": f"Who has number {n}?", "completion": f" Number {n} is yours."} for n in range(24)]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    job = client.train("trained", data, epochs=40, batch_size=4, rank=4, validation_split=0)

    def holders() -> list[str]:
        return [replica.id for replica in client.replicas() if job.id in replica.training_jobs]

    until(lambda: holders() and job.refresh().step >= 4)
    (first,) = holders()
    client.drain_replica(first)
    until(lambda: holders() and holders() != [first], 120)
    assert job.refresh().state not in ("failed", "cancelled")
    job.wait(timeout=300)
    assert job.state == "succeeded"
    # It went on from its checkpoint: each step was done once.
    steps = [event.step for event in job.events() if event.type == "step"]
    assert steps == list(range(1, job.refresh().total_steps + 1))
    assert client.generate(PROMPT, adapters=["trained"], max_tokens=4, ignore_eos=True).usage.completion_tokens == 4


def test_a_stop_leaves_no_process(model: Path, tmp_path_factory: pytest.TempPathFactory, server: ServerProcess) -> None:
    replicas = replica_processes(server)
    server.process.send_signal(signal.SIGTERM)
    assert server.finish(90) == 0
    assert not any("SIGTERM received" in line for line in server.lines)

    def gone(pid: int) -> bool:
        return not Path(f"/proc/{pid}").exists()

    until(lambda: all(map(gone, replicas)), 30)


def test_a_killed_server_leaves_no_process(model: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    server = start(model, tmp_path_factory.mktemp("killed"), "--backend", "ray")
    replicas = replica_processes(server)
    assert len(replicas) == 1
    kill(server)
    server.finish()
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in replicas), 60)


def test_without_a_base_the_reason_is_told(tmp_path: Path) -> None:
    server = ServerProcess(
        tmp_path, "--backend", "ray", "--model", str(tmp_path / "none"), "--state-dir", str(tmp_path)
    )
    try:
        assert server.finish(120) == 1
    finally:
        kill(server)
    assert any("none" in line and line.startswith("loramux: ") for line in server.lines), server.lines
