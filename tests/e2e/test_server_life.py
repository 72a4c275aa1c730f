"""A server's life as a process: ready, answering, asked to stop under load, started again."""

from __future__ import annotations

import asyncio
import fcntl
import signal
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import httpx2
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

import loramux
from loramux_server.__main__ import SAME_SIGNAL
from loramux_server.model.base.quantize import SETTINGS
from loramux_server.model.base.source import locate
from tests.tiny import write_model

from .server_process import free_port, server_process

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "tiny", "llama", max_position_embeddings=4096)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shared, so that the base is converted once."""
    return tmp_path_factory.mktemp("home")


def flags(model: Path, home: Path, *more: str) -> tuple[str, ...]:
    fixed = ("--model", str(model), "--device", "cpu", "--dtype", "float32", "--kv-cache-memory", "32MiB")
    return (*fixed, "--state-dir", str(home / "state"), *more)


def test_it_says_where_it_listens_and_stops_when_told(model: Path, home: Path) -> None:
    metrics = f"127.0.0.1:{free_port()}"
    with server_process(home, *flags(model, home, "--metrics-listen", metrics)) as server:
        server.wait_for("Ctrl-C")
        text = "\n".join(server.lines)
        assert server.address in text
        assert f"http://{metrics}/metrics" in text
        assert "loramux generate" in text
        with loramux.Client(server.address) as client:
            assert client.health() == "SERVING"
            assert client.info().device == "cpu"
            completion = client.generate("hello", max_tokens=4, ignore_eos=True)
            assert completion.usage.completion_tokens == 4
            with pytest.raises(loramux.NotFound, match="nobody"):
                client.generate("hello", adapters=["nobody"])
        with urllib.request.urlopen(f"http://{metrics}/metrics", timeout=5) as answer:
            page = answer.read().decode()
        assert 'loramux_generated_tokens_total{adapter="base",tenant="default"} 4.0' in page
        assert 'loramux_requests_total{code="NOT_FOUND",method="GenerateOnce"} 1.0' in page
        assert 'loramux_vram_bytes{device="cpu",kind="base"}' in page
        server.process.send_signal(signal.SIGTERM)
        assert server.finish() == 0
        assert not any("Traceback" in line for line in server.lines), server.lines


def started(client: loramux.Client, tokens: int, n: int = 1) -> loramux.CompletionStream:
    stream = client.stream("hello", max_tokens=tokens, ignore_eos=True, n=n)
    next(stream)
    return stream


def test_a_stop_signal_lets_running_requests_finish(model: Path, home: Path) -> None:
    with server_process(home, *flags(model, home, "--metrics-listen", "off")) as server:
        server.wait_for("Ctrl-C")
        with loramux.Client(server.address) as client:
            stream = started(client, 150)
            server.process.send_signal(signal.SIGTERM)
            for _ in stream:
                pass
            assert stream.completion.usage.completion_tokens == 150
        assert server.finish() == 0


async def test_none_of_64_streams_is_cut_within_the_grace_and_a_job_goes_on_later(model: Path, home: Path) -> None:
    rows = [{"prompt": f"Where is shop {i}?", "completion": f" In street {i}."} for i in range(64)]
    with server_process(home, *flags(model, home, "--metrics-listen", "off", "--drain-timeout", "120")) as server:
        await asyncio.to_thread(server.wait_for, "Ctrl-C")
        async with loramux.AsyncClient(server.address) as client:
            job = await client.train("shops", rows, max_steps=100_000, rank=2)
            async for seen in job.events():
                if seen.type == "step":
                    break
            began, go = 0, asyncio.Event()

            async def one(number: int) -> int:
                nonlocal began
                tokens = 0
                async for chunk in client.stream(f"hello {number}", max_tokens=60, ignore_eos=True):
                    began += not tokens
                    tokens += len(chunk.token_ids)
                    if began == 64:
                        go.set()
                return tokens

            streams = [asyncio.create_task(one(i)) for i in range(64)]
            await go.wait()
            server.process.send_signal(signal.SIGTERM)
            assert await asyncio.gather(*streams) == [60] * 64
        assert await asyncio.to_thread(server.finish) == 0
    with server_process(home, *flags(model, home, "--metrics-listen", "off")) as again:
        await asyncio.to_thread(again.wait_for, "Ctrl-C")
        async with loramux.AsyncClient(again.address) as client:
            found = await client.jobs.get(job.id)
            async for event in found.events(after_sequence=seen.sequence):
                if event.type == "step":
                    assert event.step > seen.step  # from where it was, not from the beginning
                    break
            await found.cancel()


def test_the_drain_timeout_ends_what_is_left(model: Path, home: Path) -> None:
    with server_process(home, *flags(model, home, "--metrics-listen", "off", "--drain-timeout", "0")) as server:
        server.wait_for("Ctrl-C")
        with loramux.Client(server.address) as client:
            stream = started(client, 2000, n=16)  # many seconds of work when the signal arrives
            server.process.send_signal(signal.SIGINT)
            with pytest.raises(loramux.Unavailable, match="shutting down"):
                for _ in stream:
                    pass
        assert server.finish() == 0


def test_field_01_checks_of_rows_do_not_hold_a_stop_up(model: Path, home: Path) -> None:
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}] * 20
    small = [{"messages": messages}] * 150  # on a thread
    with server_process(home, *flags(model, home, "--metrics-listen", "off", "--drain-timeout", "0")) as server:
        server.wait_for("Ctrl-C")
        with loramux.Client(server.address, timeout=60) as client, ThreadPoolExecutor(2) as pool:
            checks = [pool.submit(client.datasets.validate, rows) for rows in (small, small * 300)]
            with pytest.raises(TimeoutError):
                checks[1].result(4)
            before = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            assert server.finish(20) == 0
            assert time.monotonic() - before < 10
            for check in checks[1:]:
                assert isinstance(check.exception(), loramux.LoramuxError)


def test_a_second_signal_does_not_wait(model: Path, home: Path) -> None:
    with server_process(home, *flags(model, home, "--metrics-listen", "off", "--drain-timeout", "60")) as server:
        server.wait_for("Ctrl-C")
        with loramux.Client(server.address) as client:
            stream = started(client, 2000, n=16)
            server.process.send_signal(signal.SIGTERM)
            server.wait_for("Finishing")
            time.sleep(SAME_SIGNAL + 0.1)  # a signal that follows at once counts as the same one
            before = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            code = server.finish(10)
            assert time.monotonic() - before < 5
            stream.close()
        assert code == 128 + signal.SIGTERM
    with server_process(home, *flags(model, home, "--metrics-listen", "off")) as again:
        again.wait_for("Ctrl-C")


def test_probes_while_a_base_is_converted(model: Path, tmp_path: Path) -> None:
    """It may take minutes, and a liveness probe that failed meanwhile would start it over for ever."""
    base = tmp_path / "state" / "base"
    base.mkdir(parents=True)
    held = (base / f".{locate(str(model)).key(SETTINGS)}.lock").open("w")
    fcntl.flock(held, fcntl.LOCK_EX)  # the conversion waits, as if another server made the same copy
    http = f"127.0.0.1:{free_port()}"
    with server_process(tmp_path, *flags(model, tmp_path), "--http-listen", http) as server:
        url = f"http://{http}/health"
        with grpc.insecure_channel(server.address) as channel:
            grpc.channel_ready_future(channel).result(timeout=60)
            check = health_pb2_grpc.HealthStub(channel).Check

            def probe() -> tuple[bool, bool, int, int]:
                alive, ready = (
                    check(health_pb2.HealthCheckRequest(service=name), timeout=10).status
                    == health_pb2.HealthCheckResponse.SERVING
                    for name in ("liveness", "")
                )
                live, serving = (httpx2.get(f"{url}/{name}", timeout=10).status_code for name in ("live", "ready"))
                return alive, ready, live, serving

            server.wait_for("importing PyTorch")
            for _ in range(20):
                assert probe() == (True, False, 200, 503)
            assert any("converting" in line for line in server.lines)
            held.close()
            server.wait_for("is ready")
            assert probe() == (True, True, 200, 200)
