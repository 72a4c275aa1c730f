"""A real door, real services and a real store over a scripted engine, and callers of several tenants."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.message import Message

from loramux.v1 import (
    adapters_pb2,
    adapters_pb2_grpc,
    common_pb2,
    inference_pb2_grpc,
    server_pb2_grpc,
    training_pb2,
    training_pb2_grpc,
    usage_pb2_grpc,
)
from loramux_server.config import Address
from loramux_server.core.callers.principal import Principal, Scope
from loramux_server.core.compose import ComposeCommand, ComposeResult
from loramux_server.core.errors import Code, Error
from loramux_server.core.observing.observer import CallSinks, Observers
from loramux_server.rpc.limits import RpcLimits
from loramux_server.rpc.server import RpcServer
from loramux_server.services.access.access import Access
from loramux_server.services.access.credentials import Credentials
from loramux_server.services.adapters.service import AdapterService
from loramux_server.services.availability import Availability, Readiness, Services
from loramux_server.services.common.calls import Calls, GenerationLimit
from loramux_server.services.common.context import Context
from loramux_server.services.inference.service import GenerationService
from loramux_server.services.jobs.board import JobBoard
from loramux_server.services.jobs.service import TrainingService
from loramux_server.services.jobs.uploads import UploadService
from loramux_server.services.usage.recorder import UsageRecorder
from loramux_server.services.usage.service import UsageService
from loramux_server.telemetry.logs.jobs import JobLog
from loramux_server.telemetry.logs.requests import RequestLog
from loramux_server.telemetry.metrics import Metrics

from .adapter_files import CONFIG, WEIGHTS, config_bytes, weights_bytes, write_adapter
from .fakes import FakeBackend

NOT_ADMIN = frozenset(Scope) - {Scope.ADMIN}
CALLERS = {
    "ann": Principal("ann", NOT_ADMIN),
    "ann's operator": Principal("ann", frozenset(Scope)),
    "bob": Principal("bob", NOT_ADMIN),
    "ann's narrow key": Principal("ann", NOT_ADMIN, "k1", frozenset({"mine"})),
    "operator": Principal("operations", frozenset(Scope)),
}
"""What a caller shows, and who it is then. The narrow key may use one adapter of its tenant's."""


class Known:
    """Takes a caller for whom it says it is."""

    async def authenticate(self, credentials: Credentials) -> Principal:
        found = CALLERS.get("".join(credentials.authorization))
        if found is None:
            raise Error(Code.UNAUTHENTICATED, "who is this?")
        return found


@dataclass
class Caller:
    """A channel to the door, used by one caller."""

    name: str
    channel: grpc.aio.Channel
    stubs: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.stubs = {
            "InferenceService": inference_pb2_grpc.InferenceServiceStub(self.channel),
            "AdapterService": adapters_pb2_grpc.AdapterServiceStub(self.channel),
            "TrainingService": training_pb2_grpc.TrainingServiceStub(self.channel),
            "ServerService": server_pb2_grpc.ServerServiceStub(self.channel),
            "UsageService": usage_pb2_grpc.UsageServiceStub(self.channel),
        }

    async def call(self, method: str, request: Message | list[Message], *, first: int | None = None) -> list[Message]:
        """The messages of an answer (of a stream the ``first`` ones). ``method`` is ``Service/Method``."""
        service, _, name = method.partition("/")
        metadata = (("authorization", self.name), ("x-request-id", "the-same"))
        call = getattr(self.stubs[service], name)(
            iter(request) if isinstance(request, list) else request, metadata=metadata, timeout=30
        )
        if not isinstance(call, grpc.aio.StreamStreamCall | grpc.aio.UnaryStreamCall):
            return [await call]
        found: list[Message] = []
        async for message in call:
            found.append(message)
            if first is not None and len(found) == first:
                call.cancel()
                break
        return found

    async def one(self, method: str, request: Message | list[Message]) -> Any:
        """The only message of an answer."""
        (found,) = await self.call(method, request)
        return found

    async def upload(self, name: str, files: Mapping[str, bytes]) -> adapters_pb2.AdapterVersion:
        found: adapters_pb2.AdapterVersion = await self.one("AdapterService/UploadAdapter", adapter_upload(name, files))
        return found

    async def dataset(self, data: bytes) -> training_pb2.Dataset:
        found: training_pb2.Dataset = await self.one("TrainingService/UploadDataset", dataset_upload(data))
        return found


def adapter_files(context: Context, b: float = 0.5) -> dict[str, bytes]:
    """An adapter's folder; another ``b``, other content."""
    return {CONFIG: config_bytes(), WEIGHTS: weights_bytes(context.info, b=b)}


def adapter_upload(name: str, files: Mapping[str, bytes]) -> list[Message]:
    chunks = [common_pb2.FileChunk(name=file, data=data) for file, data in files.items()]
    header = adapters_pb2.UploadAdapterHeader(name=name)
    return [
        adapters_pb2.UploadAdapterRequest(header=header),
        *(adapters_pb2.UploadAdapterRequest(chunk=chunk) for chunk in chunks),
    ]


def dataset_upload(data: bytes) -> list[Message]:
    header = training_pb2.UploadDatasetHeader(name="rows.jsonl")
    return [training_pb2.UploadDatasetRequest(header=header), training_pb2.UploadDatasetRequest(chunk=data)]


@dataclass
class World:
    """The server and what a test looks at behind it."""

    context: Context
    backend: FakeBackend
    availability: Availability
    calls: Calls
    metrics: Metrics
    channel: grpc.aio.Channel
    make: Callable[[str, grpc.aio.Channel], Caller] = Caller

    def caller(self, name: str) -> Caller:
        """One of :data:`CALLERS`."""
        return self.make(name, self.channel)


@asynccontextmanager
async def open_world(context: Context) -> AsyncIterator[World]:
    """``context.backend`` must be a :class:`FakeBackend`. Jobs stay queued, and a merge gives a fixed adapter."""
    backend, metrics = context.backend, Metrics("1.2.3")
    request_log = RequestLog()
    usage = UsageRecorder(context.store.usage)
    observer = Observers(metrics, context.activity, usage, request_log, JobLog())
    assert isinstance(backend, FakeBackend)

    async def composer(command: ComposeCommand) -> ComposeResult:
        write_adapter(Path(command.output), context.info)
        return ComposeResult(0.0)

    availability = Availability("1.2.3")
    training = TrainingService(context, JobBoard(context.store, observer))
    availability.services = Services(
        generation=GenerationService(context, observer),
        adapters=AdapterService(context, composer, observer),
        training=training,
        uploads=UploadService(context, training),
        usage=UsageService(context, usage),
    )
    availability.context, availability.readiness = context, Readiness.READY
    sinks = CallSinks(metrics, request_log)
    calls = Calls(sinks, GenerationLimit(100), Access(Known(), context.meter))
    server = RpcServer(availability, calls, Address("127.0.0.1", 0), limits=RpcLimits(stall_timeout=30))
    await server.start()
    try:
        async with grpc.aio.insecure_channel(str(server.address)) as channel:
            yield World(context, backend, availability, calls, metrics, channel)
    finally:
        await server.stop()
        request_log.close()
