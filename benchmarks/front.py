"""What the front costs per token: gRPC, services, text and metrics over an engine that plays a script.

    python -m benchmarks.front                  # 64 streams, 10,000 tokens, the client in a process of its own
    python -m benchmarks.front --layer services # without gRPC: services and below

The script comes as the real engine's outputs do: one frame of the wire per step, with a token for every stream, decoded
and delivered on the front's loop. The step after it is played as soon as the front is idle, so the rate found is the
highest that the front keeps up with; ``--step`` plays steps at a fixed pace instead, as an engine would. Processor
time of the front per token is what it takes away from the engine on a machine that is full.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

import uvloop

from loramux import AsyncClient
from loramux_server.config import Address
from loramux_server.core.backend import EngineInfo, EngineStats, GenerateCommand, TokenEvent
from loramux_server.core.callers.principal import LOCAL, Principal
from loramux_server.core.types import FinishReason, SamplingParams
from loramux_server.engine.transport.client import EngineClient, Link
from loramux_server.engine.transport.protocol import AbortCommand, Command, Output, StatsCommand, command_id
from loramux_server.engine.transport.wire import HEADER, decode, encode
from loramux_server.host.resources import usable_cpus
from loramux_server.rpc.server import RpcServer
from loramux_server.services.access.access import Access
from loramux_server.services.access.credentials import Credentials
from loramux_server.services.availability import Availability, Readiness, Services
from loramux_server.services.common.calls import Calls, GenerationLimit
from loramux_server.services.common.context import Context
from loramux_server.services.common.limits import Limits
from loramux_server.services.inference.service import GenerationService
from loramux_server.services.inference.types import GenerateRequest
from loramux_server.store.store import Store
from loramux_server.telemetry import logs
from loramux_server.telemetry.metrics import Metrics
from loramux_server.text import TextTokenizer

from .samples import Sample, Stopwatch, summarise
from .serving import prepare

MATERIAL = Path(__file__).parents[1] / "build" / "bench"
TOKENIZER = "base/*SmolLM2*/tokenizer.json"
INFO = EngineInfo("scripted", "0" * 64, "Llama", 49152, 8192, (2,), "cpu", "float32", 1, {}, "")


class ScriptedLink:
    """An engine that gives every open generation one token per step."""

    def __init__(self, info: EngineInfo, step: float) -> None:
        self._info, self._step = info, step
        self._left: dict[str, int] = {}
        self._wanted = 0
        self._all_here = asyncio.Event()
        self._play: asyncio.Task[None] | None = None
        self.steps = 0

    async def start(self, client: EngineClient) -> EngineInfo:
        self._client = client
        return self._info

    def send(self, command: Command) -> None:
        if isinstance(command, GenerateCommand):
            self._left[command.id] = command.sampling.max_tokens
            if len(self._left) == self._wanted:
                self._all_here.set()
        elif isinstance(command, AbortCommand):
            self._left.pop(command.id, None)
        elif isinstance(command, StatsCommand):
            self._client.deliver([Output(command_id(command), EngineStats(), done=True)])

    async def close(self) -> None:
        if self._play is not None:
            self._play.cancel()

    def play(self, streams: int) -> None:
        """Begin once ``streams`` generations wait; none may have come before."""
        self._wanted = streams
        self._play = asyncio.create_task(self._run())

    async def _run(self) -> None:
        await self._all_here.wait()
        due = time.monotonic()
        while self._left:
            self._client.deliver(decode(self._frame()[HEADER.size :]))
            self.steps += 1
            due += self._step
            await asyncio.sleep(max(0.0, due - time.monotonic()) if self._step else 0.0)

    def _frame(self) -> bytes:
        outputs = []
        for id, left in list(self._left.items()):
            reason = FinishReason.LENGTH if left == 1 else None
            outputs.append(Output(id, TokenEvent(id, (200 + left % 1000,), finish_reason=reason), done=left == 1))
            self._left[id] = left - 1
            if left == 1:
                del self._left[id]
        return encode(outputs)


@contextlib.asynccontextmanager
async def services(link: Link, tokenizer: Path) -> AsyncIterator[tuple[GenerationService, Metrics]]:
    """The generation service over a scripted engine."""
    backend = EngineClient(link)
    info = await backend.start()
    metrics = Metrics("bench")
    with (
        tempfile.TemporaryDirectory(prefix="loramux-bench-") as folder,
        contextlib.closing(Store.open(Path(folder))) as store,
    ):
        text = TextTokenizer.load(str(tokenizer))
        yield GenerationService(Context(store, text, info, Limits(), backend), metrics), metrics
    await backend.close()


class Anybody:
    """Takes every caller for the default tenant, as a server without keys does."""

    async def authenticate(self, credentials: Credentials) -> Principal:
        return LOCAL


@contextlib.asynccontextmanager
async def door(link: Link, tokenizer: Path) -> AsyncIterator[tuple[RpcServer, Metrics]]:
    """A server over a scripted engine."""
    async with services(link, tokenizer) as (generation, metrics):
        availability = Availability("bench")
        calls = Calls(metrics, GenerationLimit(1088), Access(Anybody()))
        server = RpcServer(availability, calls, Address("127.0.0.1", 0))
        await server.start()
        availability.services = Services(generation, None, None, None, None)  # type: ignore[arg-type]
        availability.readiness = Readiness.READY
        yield server, metrics
        await server.stop()


def scripted(options: argparse.Namespace, tokenizer: Path) -> ScriptedLink:
    """The engine that the flags ask for."""
    return ScriptedLink(replace(INFO, tokenizer_path=str(tokenizer)), options.step)


async def serve(options: argparse.Namespace, tokenizer: Path) -> None:
    """Play to a client in a process of its own; print what that cost here."""
    link = scripted(options, tokenizer)
    async with door(link, tokenizer) as (server, _):
        command = [sys.executable, "-m", "benchmarks.front", "--client", str(server.address)]
        command += ["--streams", str(options.streams), "--tokens", str(options.tokens)]
        client = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
        assert client.stdout is not None
        await client.stdout.readline()  # connected
        begin, busy = time.perf_counter(), time.process_time()
        link.play(options.streams)
        report = await client.stdout.read()
        seconds, busy = time.perf_counter() - begin, time.process_time() - busy
        await client.wait()
        show("gRPC", options, seconds, busy, link.steps)
        print(report.decode().strip())


async def drain(options: argparse.Namespace, tokenizer: Path) -> None:
    """Read the services' streams in this process; print what that cost."""
    link = scripted(options, tokenizer)
    async with services(link, tokenizer) as (generation, _):

        async def one(i: int) -> None:
            sampling = SamplingParams(max_tokens=per_stream(options), ignore_eos=True)
            request = GenerateRequest(prompt=f"Stream {i}", sampling=sampling, principal=LOCAL)
            async for _ in generation.generate(request):
                pass

        begin, busy = time.perf_counter(), time.process_time()
        link.play(options.streams)
        await asyncio.gather(*map(one, range(options.streams)))
        show("services", options, time.perf_counter() - begin, time.process_time() - busy, link.steps)


async def ask(address: str, options: argparse.Namespace) -> None:
    """The client's process: read all streams, print what arrived."""
    async with AsyncClient(address) as client:
        await client.info()
        print("connected", flush=True)
        messages = 0

        async def one(i: int) -> Sample:
            nonlocal messages
            watch = Stopwatch()
            options_ = {"max_tokens": per_stream(options), "temperature": 0.0, "ignore_eos": True}
            async with client.stream(f"Stream {i}", **options_) as stream:  # type: ignore[arg-type]
                async for chunk in stream:
                    messages += 1
                    watch.tokens(chunk.token_ids)
            return watch.sample()

        begin = time.perf_counter()
        samples = await asyncio.gather(*map(one, range(options.streams)))
        figures = summarise(samples, time.perf_counter() - begin)
        gaps = f"between tokens p50 {1000 * figures.gap_p50:.1f} ms, p95 {1000 * figures.gap_p95:.1f} ms"
        print(f"client: {figures.tokens} tokens in {messages} messages; {gaps}")


def per_stream(options: argparse.Namespace) -> int:
    return max(2, options.tokens // options.streams)


def show(layer: str, options: argparse.Namespace, seconds: float, busy: float, steps: int) -> None:
    tokens = per_stream(options) * options.streams
    print(
        f"{layer}: {tokens} tokens over {options.streams} streams in {steps} steps: {seconds:.2f} s, "
        f"{tokens / seconds:.0f} tokens/s; {1e6 * busy / tokens:.1f} µs of processor time per token here"
    )


def find_tokenizer(folder: Path) -> Path:
    """The default base's folder, made if no benchmark has done so yet."""
    found = sorted(folder.glob(TOKENIZER))
    if not found:
        folder.mkdir(parents=True, exist_ok=True)
        prepare("default", folder, usable_cpus(), folder / "front.log")
        found = sorted(folder.glob(TOKENIZER))
    return found[0].parent


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the flags and run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--layer", choices=("all", "services"), default="all")
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=10_000, help="over all streams")
    parser.add_argument("--step", type=float, default=0.0, metavar="SECONDS", help="pace of the steps (default: none)")
    parser.add_argument("--material", type=Path, default=MATERIAL)
    parser.add_argument("--client", metavar="ADDRESS", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    logs.configure("warning", "console")
    if options.client:
        uvloop.run(ask(options.client, options))
    else:
        work = drain if options.layer == "services" else serve
        uvloop.run(work(options, find_tokenizer(options.material)))


if __name__ == "__main__":
    main()
