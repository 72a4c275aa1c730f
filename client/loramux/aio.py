"""The async client: ``Client`` with ``await``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from types import TracebackType
from typing import Unpack

from . import _requests, _responses
from ._aio_resources import AsyncAdapters, AsyncDatasets, AsyncJob, AsyncJobs
from ._aio_transport import AsyncStream, AsyncTransport
from ._assemble import Assembler
from ._channel import target
from ._files import Data
from ._requests import ChatMessage, Gate, GenerateOptions, TrainOptions
from ._stacks import Adapters as Stack
from .convert import As
from .types import Chunk, Completion, Score, ServerInfo, Tokens
from .v1 import inference_pb2, server_pb2


class AsyncClient:
    """``Client`` for async code; everything means the same there. Make it inside the event loop that uses it."""

    def __init__(
        self,
        address: str | None = None,
        *,
        api_key: str | None = None,
        timeout: float | None = None,
        tls: bool | None = None,
        root_certificates: bytes | None = None,
    ) -> None:
        self._transport = AsyncTransport(target(address, api_key, tls, root_certificates), timeout)
        self.adapters = AsyncAdapters(self._transport)
        self.datasets = AsyncDatasets(self._transport)
        self.jobs = AsyncJobs(self._transport)

    @property
    def address(self) -> str:
        """Where it connects to."""
        return self._transport.target.address

    async def close(self) -> None:
        """Close the connection; calls that run are cancelled."""
        await self._transport.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()

    async def generate(
        self,
        prompt: str | None = None,
        *,
        messages: Iterable[ChatMessage] | None = None,
        adapters: Stack | None = None,
        timeout: float | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Completion:
        """As ``Client.generate``."""
        request = _requests.generate(prompt, messages, adapters, options)
        answer = await self._transport.unary(self._transport.inference.GenerateOnce, request, timeout)
        return _responses.completion(answer)

    def stream(
        self,
        prompt: str | None = None,
        *,
        messages: Iterable[ChatMessage] | None = None,
        adapters: Stack | None = None,
        timeout: float | None = None,
        **options: Unpack[GenerateOptions],
    ) -> AsyncCompletionStream:
        """As ``Client.stream``: ``async for chunk in client.stream(...)``."""
        request = _requests.generate(prompt, messages, adapters, options)
        method = self._transport.inference.Generate
        return AsyncCompletionStream(self._transport.stream(method, request, timeout or self._transport.timeout))

    async def score(
        self,
        prompt: str | None = None,
        continuation: str = "",
        *,
        messages: Iterable[ChatMessage] | None = None,
        continue_final_message: bool = False,
        adapters: Stack | None = None,
        timeout: float | None = None,
    ) -> Score:
        """As ``Client.score``."""
        request = _requests.score(prompt, messages, continuation, adapters, continue_final_message)
        return _responses.score(await self._transport.unary(self._transport.inference.Score, request, timeout))

    async def tokenize(
        self,
        prompt: str | None = None,
        *,
        messages: Iterable[ChatMessage] | None = None,
        continue_final_message: bool = False,
        timeout: float | None = None,
    ) -> Tokens:
        """As ``Client.tokenize``."""
        request = _requests.tokenize(prompt, messages, continue_final_message)
        return _responses.tokens(await self._transport.unary(self._transport.inference.Tokenize, request, timeout))

    async def train(
        self,
        name: str,
        data: Data,
        *,
        validation: Data | None = None,
        replay: Data | None = None,
        on_top_of: Stack | Sequence[Stack] | None = None,
        init_from: str | None = None,
        gate: Gate | None = None,
        compare_prompt: str | None = None,
        recipe: str | None = None,
        as_: As | None = None,
        metadata: dict[str, str] | None = None,
        idempotency_key: str | None = None,
        **settings: Unpack[TrainOptions],
    ) -> AsyncJob:
        """As ``Client.train``."""
        return await self.jobs.create(
            name,
            data,
            validation=validation,
            replay=replay,
            on_top_of=on_top_of,
            init_from=init_from,
            gate=gate,
            compare_prompt=compare_prompt,
            recipe=recipe,
            as_=as_,
            metadata=metadata,
            idempotency_key=idempotency_key,
            **settings,
        )

    async def info(self, *, timeout: float | None = None) -> ServerInfo:
        """As ``Client.info``."""
        method = self._transport.server.GetServerInfo
        return _responses.server_info(await self._transport.unary(method, server_pb2.GetServerInfoRequest(), timeout))

    async def health(self, service: str = "", *, timeout: float = 5.0) -> str:
        """As ``Client.health``."""
        return await self._transport.health(service, timeout)


class AsyncCompletionStream:
    """The chunks of an answer. Use it in an ``async for`` loop, best in ``async with``; closing it stops the server."""

    def __init__(self, messages: AsyncStream[inference_pb2.GenerateResponse]) -> None:
        self._messages = messages
        self._assembler = Assembler()

    def __aiter__(self) -> AsyncIterator[Chunk]:
        return self

    async def __anext__(self) -> Chunk:
        chunk = _responses.chunk(await anext(self._messages))
        self._assembler.add(chunk)
        return chunk

    @property
    def completion(self) -> Completion:
        """The answer as far as it was read."""
        return self._assembler.completion()

    def close(self) -> None:
        self._messages.close()

    async def __aenter__(self) -> AsyncCompletionStream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()
