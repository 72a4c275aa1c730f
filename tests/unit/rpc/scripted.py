"""Services that play a script, and a real server in front of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import grpc

from loramux_server.config import Address
from loramux_server.core.backend import EngineInfo, EngineStats
from loramux_server.core.jobs import JobState
from loramux_server.core.observing.observer import CallFinished, RequestRefused
from loramux_server.core.types import AdapterVersion, Chunk, FinishReason, SamplingParams, StackEntry, Usage
from loramux_server.host.certificates import CertificateFiles
from loramux_server.rpc.limits import RpcLimits
from loramux_server.rpc.server import RpcServer
from loramux_server.services.access.access import Access
from loramux_server.services.access.authenticator import Authenticator
from loramux_server.services.availability import Availability, Readiness, Services
from loramux_server.services.common.calls import Calls, GenerationLimit
from loramux_server.services.common.context import Context
from loramux_server.services.common.limits import Limits
from loramux_server.services.inference.types import Choice, Completion, GenerateRequest
from tests.unit.services.fakes import Open

INFO = EngineInfo(
    "tiny", "f00d", "Llama", 10, 256, (2,), "cpu", "float32", 4, {"q_proj": (16, 48)}, "", max_batch_tokens=512
)
ACME = StackEntry(AdapterVersion("acme", 3, "d1", 8), 0.5)


@dataclass
class Generation:
    """``answer`` makes the chunks; what was asked and whether the stream was closed is written down."""

    answer: Callable[[GenerateRequest], AsyncIterator[Chunk]] | None = None
    defaults: SamplingParams = SamplingParams(max_tokens=33)
    requests: list[GenerateRequest] = field(default_factory=list)
    closed: asyncio.Event = field(default_factory=asyncio.Event)
    waiting: asyncio.Event = field(default_factory=asyncio.Event)

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Chunk]:
        self.requests.append(request)
        try:
            async for chunk in (self.answer or hello)(request):
                yield chunk
        finally:
            self.closed.set()

    async def generate_once(self, request: GenerateRequest) -> Completion:
        text = "".join([c.text async for c in self.generate(request)])
        choice = Choice(0, text, (1, 2), (), FinishReason.STOP)
        return Completion(request.request_id, (choice,), Usage(3, 2), (ACME,))

    def token_text(self, token_id: int) -> str:
        return f"<{token_id}>"

    async def forever(self, request: GenerateRequest) -> AsyncGenerator[Chunk]:
        yield Chunk(text="first")
        self.waiting.set()
        await asyncio.Event().wait()


async def hello(request: GenerateRequest) -> AsyncGenerator[Chunk]:
    yield Chunk(text="hel", token_ids=(1,), adapters=(ACME,))
    yield Chunk(text="lo", token_ids=(2,), finish_reason=FinishReason.STOP, usage=Usage(3, 2), adapters=(ACME,))


@dataclass
class Adapters:
    uploads: list[tuple[str, dict[str, bytes], dict[str, Any]]] = field(default_factory=list)

    async def upload(self, name: str, chunks: AsyncIterator[tuple[str, bytes]], tenant: str, **given: Any) -> Any:
        files: dict[str, bytes] = {}
        async for file, data in chunks:
            files[file] = files.get(file, b"") + data
        self.uploads.append((name, files, given))
        from .test_convert import VERSION

        return VERSION


@dataclass
class Training:
    datasets: list[bytes] = field(default_factory=list)

    async def upload_dataset(self, chunks: AsyncIterator[bytes], tenant: str, **given: Any) -> Any:
        self.datasets.append(b"".join([c async for c in chunks]))
        from .test_convert import DATASET

        return DATASET

    async def watch_job(self, job_id: str, tenant: str, *, after_sequence: int) -> AsyncGenerator[Any]:
        from .test_convert import EVENT

        yield EVENT
        await asyncio.Event().wait()


@dataclass
class Counted:
    """Counts calls as metrics would."""

    ended: list[tuple[str, str]] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)
    more: asyncio.Event = field(default_factory=asyncio.Event)

    def call_finished(self, event: CallFinished) -> None:
        assert event.seconds >= 0
        self.ended.append((event.method, event.code))
        self.more.set()

    def quota_refused(self, tenant: str, limit: str) -> None:
        self.refused.append((tenant, limit))

    def request_refused(self, event: RequestRefused) -> None: ...

    async def next(self) -> tuple[str, str]:
        """The code of the next call that ends (or that has ended and was not asked for)."""
        while not self.ended:
            self.more.clear()
            await self.more.wait()
        return self.ended.pop(0)


@dataclass
class Door:
    """A running server and a channel to it."""

    server: RpcServer
    availability: Availability
    channel: grpc.aio.Channel
    generation: Generation
    adapters: Adapters
    training: Training
    calls: Counted
    end_calls: Callable[[], None]
    """As when the server stops."""


async def _stats() -> EngineStats:
    return EngineStats(running=1, memory={"base": 7}, resident={"device": ("d1",)})


def _context(stats: Callable[[], Awaitable[EngineStats]]) -> Context:
    """As much of the real one as a description of the server asks for."""
    store = SimpleNamespace(
        adapters=SimpleNamespace(count=lambda tenant: 2),
        jobs=SimpleNamespace(counts=lambda tenant: {JobState.RUNNING: 1}),
    )
    made: Any = Context
    return made(store, SimpleNamespace(chat_template="x"), INFO, Limits(), SimpleNamespace(stats=stats))


def _channel(address: str, credentials: grpc.ChannelCredentials | None) -> grpc.aio.Channel:
    if credentials is None:
        return grpc.aio.insecure_channel(address)
    return grpc.aio.secure_channel(address, credentials)


@asynccontextmanager
async def open_door(
    *,
    ready: bool = True,
    stats: Callable[[], Awaitable[EngineStats]] = _stats,
    max_generations: int = 1088,
    authenticator: Authenticator | None = None,
    reflects: bool = True,
    limits: RpcLimits | None = None,
    certificate: CertificateFiles | None = None,
    credentials: grpc.ChannelCredentials | None = None,
) -> AsyncIterator[Door]:
    availability, counted = Availability("1.2.3"), Counted()
    generation, adapters, training = Generation(), Adapters(), Training()
    calls = Calls(counted, GenerationLimit(max_generations), Access(authenticator or Open()))
    server = RpcServer(
        availability,
        calls,
        Address("127.0.0.1", 0),
        certificate=certificate,
        reflects=lambda: reflects,
        limits=limits or RpcLimits(),
    )
    await server.start()
    try:
        if ready:
            availability.services = Services(generation, adapters, training, None, None)  # type: ignore[arg-type]
            availability.context = _context(stats)
            availability.readiness = Readiness.READY
            await server.set_serving(True)
        async with _channel(str(server.address), credentials) as channel:
            yield Door(server, availability, channel, generation, adapters, training, counted, calls.fail_running)
    finally:
        await server.stop()
