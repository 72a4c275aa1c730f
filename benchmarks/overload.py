"""Thousands of calls at once: which are refused, how fast, and what the others wait.

    make bench-overload                         # 2,000 calls over 8 connections, from a process of their own: a minute
    make bench-overload BENCH_ARGS=--quick      # fewer calls, to see that it runs
    make bench-overload BENCH_ARGS='--calls 5000 --json FILE'

The engine is scripted: it runs 64 requests at a time, a token each per step of 20 ms, holds 1,024 more and refuses what
comes beyond, as the real one does by default. What is measured is the front; the times are those of the client. Beside
it stands a bare grpc.aio server that does nothing but refuse: no server of this library in one process is faster.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import grpc
import uvloop
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from loramux.v1 import inference_pb2, inference_pb2_grpc
from loramux_server.core.backend import EngineInfo, EngineStats, GenerateCommand, TokenEvent
from loramux_server.core.errors import Code, Error
from loramux_server.core.types import FinishReason
from loramux_server.engine.transport.client import EngineClient
from loramux_server.engine.transport.protocol import AbortCommand, Command, Failure, Output, StatsCommand, command_id
from loramux_server.engine.transport.wire import HEADER, decode, encode
from loramux_server.telemetry import logs

from .front import INFO, MATERIAL, door, find_tokenizer

RUNNING, QUEUE, STEP, TOKENS = 64, 1024, 0.02, 16
QUICK = 1500
"""Calls of a trial."""


class QueueingLink:
    """An engine that runs some generations, lets others wait, and refuses the rest."""

    def __init__(self) -> None:
        self._running: dict[str, int] = {}
        self._waiting: deque[str] = deque()
        self._play: asyncio.Task[None] | None = None

    async def start(self, client: EngineClient) -> EngineInfo:
        self._client = client
        self._play = asyncio.create_task(self._run())
        return INFO

    def send(self, command: Command) -> None:
        if isinstance(command, GenerateCommand):
            if len(self._waiting) < QUEUE:
                self._waiting.append(command.id)
                return
            error = Error(Code.RESOURCE_EXHAUSTED, "the queue is full", reason="QUEUE_FULL", retry_after=1.0)
            self._client.deliver([Output(command.id, failure=Failure.of(error), done=True)])
        elif isinstance(command, AbortCommand):
            self._running.pop(command.id, None)
        elif isinstance(command, StatsCommand):
            self._client.deliver([Output(command_id(command), EngineStats(), done=True)])

    async def close(self) -> None:
        if self._play is not None:
            self._play.cancel()

    async def _run(self) -> None:
        while True:
            while self._waiting and len(self._running) < RUNNING:
                self._running[self._waiting.popleft()] = TOKENS
            outputs = []
            for id, left in list(self._running.items()):
                reason = FinishReason.LENGTH if left == 1 else None
                outputs.append(Output(id, TokenEvent(id, (200,), finish_reason=reason), done=left == 1))
                self._running[id] = left - 1
                if left == 1:
                    del self._running[id]
            self._client.deliver(decode(encode(outputs)[HEADER.size :]))
            await asyncio.sleep(STEP)


async def serve(options: argparse.Namespace) -> dict[str, object]:
    """Run a server and a client's process; gives what the client saw and the server counted."""
    link = QueueingLink()
    async with door(link, find_tokenizer(options.material)) as (server, metrics):
        seen = await seen_by_client(str(server.address), options)
        counted = Counter[str]()
        for family in metrics.registry.collect():
            for sample in family.samples:
                if sample.name == "loramux_requests_total" and sample.labels["method"] == "GenerateOnce":
                    counted[sample.labels["code"]] += int(sample.value)
        return {**seen, "counted": dict(counted)}


async def refuse(options: argparse.Namespace) -> dict[str, object]:
    """Run a bare server that refuses every call, and a client's process; gives what the client saw."""

    async def abort(request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")

    bound = (("grpc.server.max_pending_requests", 100_000), ("grpc.server.max_pending_requests_hard_limit", 100_000))
    server = grpc.aio.server(options=bound)
    handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
        "GenerateOnce": grpc.unary_unary_rpc_method_handler(abort)
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("loramux.v1.InferenceService", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        return await seen_by_client(f"127.0.0.1:{port}", options)
    finally:
        await server.stop(None)


async def seen_by_client(address: str, options: argparse.Namespace) -> dict[str, object]:
    """What a client in a process of its own saw of a server."""
    command = [sys.executable, "-m", "benchmarks.overload", "--client", address]
    command += ["--calls", str(options.calls), "--channels", str(options.channels)]
    client = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    output, _ = await client.communicate()
    found: dict[str, object] = json.loads(output)
    return found


async def ask(address: str, options: argparse.Namespace) -> dict[str, object]:
    """The client's process: all calls at once; what came of them."""
    local = (("grpc.use_local_subchannel_pool", 1),)
    channels = [grpc.aio.insecure_channel(address, options=local) for _ in range(options.channels)]
    stubs = [inference_pb2_grpc.InferenceServiceStub(channel) for channel in channels]
    await asyncio.gather(*(channel.channel_ready() for channel in channels))
    times: dict[str, list[float]] = {}

    async def one(i: int) -> None:
        request = inference_pb2.GenerateRequest(prompt=f"Question {i}: where is the harbour?")
        begin = time.perf_counter()
        try:
            await stubs[i % len(stubs)].GenerateOnce(request, timeout=120)
            end = "OK"
        except grpc.aio.AioRpcError as error:
            end = f"{error.code().name} {reason(error)}".strip()
        times.setdefault(end, []).append(time.perf_counter() - begin)

    begin = time.perf_counter()
    await asyncio.gather(*map(one, range(options.calls)))
    found: dict[str, object] = {"calls": options.calls, "seconds": round(time.perf_counter() - begin, 3)}
    for channel in channels:
        await channel.close()
    return {**found, "ends": {end: summary(took) for end, took in sorted(times.items())}}


def reason(error: grpc.aio.AioRpcError) -> str:
    """The reason in an error's details, and whether it says when to come back."""
    status = rpc_status.from_call(error)
    found, words = error_details_pb2.ErrorInfo(), []
    for detail in status.details if status is not None else ():
        if detail.Unpack(found):
            words.append(found.reason)
        elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            words.append("with a time")
    return " ".join(words)


def summary(times: Sequence[float]) -> dict[str, float]:
    """Count and milliseconds."""
    cuts = statistics.quantiles(times, n=20) if len(times) > 1 else [times[0]] * 19
    found = {"p50_ms": cuts[9], "p95_ms": cuts[18], "max_ms": max(times)}
    return {"count": len(times), **{name: round(1000 * value, 1) for name, value in found.items()}}


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the flags and run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--calls", type=int, default=2000)
    parser.add_argument("--quick", action="store_true", help="1,500 calls: a trial, not a figure")
    parser.add_argument("--channels", type=int, default=8)
    parser.add_argument("--material", type=Path, default=MATERIAL)
    parser.add_argument("--json", type=Path, metavar="FILE", help="add the result to this list of results")
    parser.add_argument("--client", metavar="ADDRESS", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    logs.configure("warning", "console")
    if options.client:
        print(json.dumps(uvloop.run(ask(options.client, options))))
        return
    if options.quick:
        options.calls = QUICK
    result = {**uvloop.run(serve(options)), "bare server": uvloop.run(refuse(options))}
    print(json.dumps(result, indent=1))
    if options.json:
        results = json.loads(options.json.read_text()) if options.json.exists() else []
        machine = {"at": datetime.now(UTC).isoformat(timespec="seconds"), "cores": os.cpu_count()}
        results.append({**machine, "python": platform.python_version(), "grpc": grpc.__version__, **result})
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
