"""An engine whose findings about adapters, damaged files and logits that are not finite, are acted on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, suppress
from typing import Any, TypeVar, cast

from ...core.backend import (
    Backend,
    EmbedCommand,
    EmbedResult,
    EngineInfo,
    EngineState,
    EngineStats,
    GenerateCommand,
    ProfileResult,
    Replica,
    ScoreCommand,
    ScoreResult,
    TokenEvent,
)
from ...core.errors import LOGITS_NOT_FINITE, Error, is_damage
from ...core.jobs import TrainCommand, TrainEvent
from ...core.types import AdapterVersion, Stack
from ...store.adapters.files import AdapterFiles
from ..common.damage import retried
from .publish import is_finite

T = TypeVar("T")

NOT_FINITE = "its weights are too large: with them the model's logits are not finite"
"""Reason of the quarantine of such a version."""


class CheckedBackend:
    """``backend``, with adapters looked at again where it found something wrong with them.

    What is damaged in the store is quarantined, and the call fails with DATA_LOSS that names the version. A local copy
    that is damaged has been brought anew by then, and the call is made once more, unless it has answered in part.
    Where logits were not finite, each version of the stack is tried alone, and those that fail are quarantined.
    """

    def __init__(self, backend: Backend, files: AdapterFiles) -> None:
        self._backend, self._files = backend, files

    async def start(self) -> EngineInfo:
        return await self._backend.start()

    async def close(self) -> None:
        await self._backend.close()

    def subscribe(self, listener: Callable[[EngineState], None]) -> None:
        self._backend.subscribe(listener)

    def generate(self, command: GenerateCommand) -> AsyncIterator[TokenEvent]:
        return self._stream(lambda: self._backend.generate(command), stacked(command.stack))

    async def score(self, command: ScoreCommand) -> ScoreResult:
        return await self._once(lambda: self._backend.score(command), stacked(command.stack))

    async def embed(self, command: EmbedCommand) -> EmbedResult:
        return await self._once(lambda: self._backend.embed(command), stacked(command.stack))

    async def load(self, adapter: AdapterVersion) -> None:
        await self._once(lambda: self._backend.load(adapter), [adapter])

    async def unload(self, digest: str) -> None:
        await self._backend.unload(digest)

    async def pin(self, adapters: Sequence[AdapterVersion]) -> None:
        await self._backend.pin(adapters)

    def train(self, command: TrainCommand) -> AsyncIterator[TrainEvent]:
        own = [version for version in (command.init, command.current) if version is not None]
        return self._stream(lambda: self._backend.train(command), [*own, *stacked(*command.stacks)])

    async def stats(self) -> EngineStats:
        return await self._backend.stats()

    async def profile(self, seconds: float, output: str, *, most_events: int, kernels: bool) -> ProfileResult:
        return await self._backend.profile(seconds, output, most_events=most_events, kernels=kernels)

    async def replicas(self) -> tuple[Replica, ...]:
        return await self._backend.replicas()

    async def drain(self, replica_id: str) -> None:
        await self._backend.drain(replica_id)

    async def _stream(self, call: Callable[[], AsyncIterator[T]], versions: list[AdapterVersion]) -> AsyncIterator[T]:
        answered = False
        try:
            async with aclosing(cast("Any", call())) as events:
                async for event in events:
                    answered = True
                    yield event
            return
        except Error as error:
            if error.reason == LOGITS_NOT_FINITE:
                await self._quarantine_not_finite(versions)
            if not is_damage(error):
                raise
            await asyncio.to_thread(self._files.check_damage, versions)
            if answered:
                raise
        async with aclosing(cast("Any", call())) as events:
            async for event in events:
                yield event

    async def _once(self, call: Callable[[], Awaitable[T]], versions: list[AdapterVersion]) -> T:
        try:
            return await retried(lambda: self._files.check_damage(versions), call)
        except Error as error:
            if error.reason == LOGITS_NOT_FINITE:
                await self._quarantine_not_finite(versions)
            raise

    async def _quarantine_not_finite(self, versions: list[AdapterVersion]) -> None:
        with suppress(Error):  # an engine that is gone says nothing about a version
            for version in versions:
                if not await is_finite(self._backend, version):
                    await asyncio.to_thread(self._files.quarantine, version.digest, NOT_FINITE)


def stacked(*stacks: Stack) -> list[AdapterVersion]:
    """The versions in some stacks."""
    return [entry.adapter for stack in stacks for entry in stack.entries]
