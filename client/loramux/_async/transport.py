"""A connection to a server: one channel, the stubs, and calls that fail with the client's errors."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Generic, Protocol, TypeVar

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from .._wire.connection.channel import Target
from .._wire.io_async import sent
from .._wire.messages.fields import count, filled, seconds
from ..errors import NotFound, from_rpc_error, translated
from ..v1 import adapters_pb2_grpc, inference_pb2_grpc, server_pb2_grpc, training_pb2_grpc, usage_pb2_grpc

Q = TypeVar("Q")
R = TypeVar("R")
M = TypeVar("M", covariant=True)


class Call(Protocol[M]):
    """What grpc.aio gives for a call that answers with a stream."""

    def __aiter__(self) -> AsyncIterator[M]: ...

    def cancel(self) -> bool: ...


class AsyncTransport:
    """A channel with its stubs, for async code; make it inside the event loop that uses it."""

    def __init__(self, target: Target, timeout: float | None = None) -> None:
        self.target = target
        self.timeout = seconds(timeout)
        if target.credentials is None:
            self._channel = grpc.aio.insecure_channel(target.address, options=target.options)
        else:
            self._channel = grpc.aio.secure_channel(target.address, target.credentials, options=target.options)
        self.inference = inference_pb2_grpc.InferenceServiceStub(self._channel)
        self.adapters = adapters_pb2_grpc.AdapterServiceStub(self._channel)
        self.training = training_pb2_grpc.TrainingServiceStub(self._channel)
        self.server = server_pb2_grpc.ServerServiceStub(self._channel)
        self.usage = usage_pb2_grpc.UsageServiceStub(self._channel)
        self._health = health_pb2_grpc.HealthStub(self._channel)

    async def close(self) -> None:
        await self._channel.close()

    async def unary(
        self, method: grpc.aio.UnaryUnaryMultiCallable[Q, R], request: Q, timeout: float | None = None
    ) -> R:
        """Call with one request for one answer."""
        with translated(self.target.url):
            return await method(request, timeout=seconds(timeout) or self.timeout, metadata=self.target.metadata)

    async def upload(self, method: grpc.aio.StreamUnaryMultiCallable[Q, R], requests: Iterator[Q]) -> R:
        """Call with a stream of requests for one answer. It takes as long as it takes."""
        with translated(self.target.url):
            return await method(sent(requests), metadata=self.target.metadata)

    def stream(
        self, method: grpc.aio.UnaryStreamMultiCallable[Q, R], request: Q, timeout: float | None = None
    ) -> AsyncStream[R]:
        """Call with one request for a stream of answers; the call starts when the first one is asked for."""
        seconds(timeout)
        return AsyncStream(lambda: method(request, timeout=timeout, metadata=self.target.metadata), self.target.url)

    async def items(
        self, method: grpc.aio.UnaryUnaryMultiCallable[Any, Any], request: Any, field: str, limit: int | None
    ) -> list[Any]:
        """What all pages of a list hold in ``field``, ``limit`` at most."""
        found: list[Any] = []
        limit = count("limit", limit)
        while True:
            page = await self.unary(method, request)
            found += getattr(page, field)
            if not page.next_page_token or (limit is not None and len(found) >= limit):
                return found[:limit]
            request.page_token = page.next_page_token

    async def health(self, service: str, timeout: float) -> str:
        """Status in the words of grpc.health.v1, ``SERVING`` or ``NOT_SERVING``; ``SERVICE_UNKNOWN`` for no such."""
        try:
            request = filled(health_pb2.HealthCheckRequest(), service=service)
            answer = await self.unary(self._health.Check, request, timeout)
        except NotFound:
            return "SERVICE_UNKNOWN"
        return health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)


class AsyncStream(Generic[R]):
    """The messages of a call. Dropping it, closing it or an exception on the way cancels the call.

    grpc keeps a call that nobody reads any more alive until it is cancelled, so every way out does that.
    """

    def __init__(self, start: Callable[[], Call[R]], address: str = "") -> None:
        self._start = start
        self._address = address
        self._call: Call[R] | None = None
        self._messages: AsyncIterator[R] | None = None
        self._closed = False

    def __aiter__(self) -> AsyncIterator[R]:
        return self

    async def __anext__(self) -> R:
        if self._closed:
            raise StopAsyncIteration
        if self._messages is None:
            self._call = self._start()
            self._messages = aiter(self._call)
        try:
            return await anext(self._messages)
        except grpc.RpcError as error:
            self.close()
            raise from_rpc_error(error, self._address) from None
        except BaseException:  # the end of the stream, an interrupt or a cancelled task
            self.close()
            raise

    def close(self) -> None:
        self._closed = True
        if self._call is not None:
            self._call.cancel()

    def __del__(self) -> None:
        if getattr(self, "_call", None) is not None and not self._closed:
            self.close()
