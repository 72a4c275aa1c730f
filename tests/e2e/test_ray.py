"""A server whose engines are two replicas in a real Ray cluster of this host, beside one with an embedded engine."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from threading import Event

import pytest

from loramux import Client, DeadlineExceeded, NotFound, Replica, Unavailable
from tests.e2e.ray_servers import LONG, PROMPT, listening_elsewhere, replica_processes, start, until
from tests.e2e.server_process import ServerProcess, kill
from tests.tiny import write_adapter, write_model

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed"),
]

ADAPTERS = tuple(f"a{number}" for number in range(6))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"), "llama", max_position_embeddings=LONG)


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


def test_ray_listens_on_loopback_alone(server: ServerProcess, client: Client) -> None:
    assert client.info()
    assert listening_elsewhere(server.process.pid) == []


def test_a_replica_that_is_killed_takes_only_its_own_streams(server: ServerProcess, client: Client) -> None:
    streams = [client.stream(PROMPT, max_tokens=LONG // 2, ignore_eos=True)]
    iterators = [iter(streams[0])]
    next(iterators[0])
    # Sent only now, it goes to the other replica; two alike at the same moment would go to the same one.
    streams.append(client.stream(PROMPT, max_tokens=LONG // 2, ignore_eos=True))
    iterators.append(iter(streams[1]))
    next(iterators[1])
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


def test_a_rolling_restart_under_streams_loses_none(client: Client) -> None:
    """Both replicas are drained, one after the other, while eight callers have stream after stream."""
    stop, tokens = Event(), 60

    def ask(number: int) -> int:
        streams = 0
        while not stop.is_set():
            stack = [ADAPTERS[number % len(ADAPTERS)]]
            with client.stream(PROMPT, adapters=stack, max_tokens=tokens, ignore_eos=True) as chunks:
                last = list(chunks)[-1]
            assert last.finish_reason == "length"
            streams += 1
        return streams

    before = set(by_id(client))
    with ThreadPoolExecutor(8) as callers:
        asked = [callers.submit(ask, number) for number in range(8)]
        try:
            for replica in sorted(before):
                client.drain_replica(replica)
                until(lambda gone=replica: gone not in by_id(client))  # type: ignore[misc]
                until(lambda: [each.state for each in client.replicas()] == ["ready", "ready"])
        finally:
            stop.set()
        assert all(call.result() > 1 for call in asked)
    assert not before & set(by_id(client))


def rows(folder: Path) -> Path:
    """A small file of rows."""
    data = folder / "rows.jsonl"
    made = [{"prompt": f"Who has number {n}?", "completion": f" Number {n} is yours."} for n in range(24)]
    data.write_text("".join(json.dumps(row) + "\n" for row in made))
    return data


def test_a_job_goes_on_elsewhere_when_its_replica_is_drained(client: Client, tmp_path: Path) -> None:
    job = client.train("trained", rows(tmp_path), epochs=40, batch_size=4, rank=4, validation_split=0)

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
