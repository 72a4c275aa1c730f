"""An engine whose findings of damaged adapter files are looked into, once, before the caller hears of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import aclosing
from typing import Any, TypeVar, cast

from ..core.backend import Backend, EngineInfo, EngineStats, GenerateCommand, ScoreCommand, ScoreResult, TokenEvent
from ..core.errors import Error, is_damage
from ..core.jobs import TrainCommand, TrainEvent
from ..core.types import AdapterVersion, Stack
from ..store.adapters import AdapterRegistry

T = TypeVar("T")


class CheckedBackend:
    """``backend``, with the files of adapters looked at again where it found some damaged.

    What is damaged in the store is quarantined, and the call fails with DATA_LOSS that names the version. A local copy
    that is damaged has been brought anew by then, and the call is made once more, unless it has answered in part.
    """

    def __init__(self, backend: Backend, adapters: AdapterRegistry) -> None:
        self._backend, self._adapters = backend, adapters

    async def start(self) -> EngineInfo:
        return await self._backend.start()

    async def close(self) -> None:
        await self._backend.close()

    def generate(self, command: GenerateCommand) -> AsyncIterator[TokenEvent]:
        return self._stream(lambda: self._backend.generate(command), stacked(command.stack))

    async def score(self, command: ScoreCommand) -> ScoreResult:
        return await retried(self._adapters, stacked(command.stack), lambda: self._backend.score(command))

    async def load(self, adapter: AdapterVersion) -> None:
        await retried(self._adapters, [adapter], lambda: self._backend.load(adapter))

    async def unload(self, digest: str) -> None:
        await self._backend.unload(digest)

    async def keep(self, adapters: Sequence[AdapterVersion]) -> None:
        await self._backend.keep(adapters)

    def train(self, command: TrainCommand) -> AsyncIterator[TrainEvent]:
        own = [version for version in (command.init, command.current) if version is not None]
        return self._stream(lambda: self._backend.train(command), [*own, *stacked(*command.stacks)])

    async def stats(self) -> EngineStats:
        return await self._backend.stats()

    async def _stream(self, call: Callable[[], AsyncIterator[T]], versions: list[AdapterVersion]) -> AsyncIterator[T]:
        answered = False
        try:
            async with aclosing(cast("Any", call())) as events:
                async for event in events:
                    answered = True
                    yield event
            return
        except Error as error:
            if not is_damage(error):
                raise
            await asyncio.to_thread(self._adapters.check_damage, versions)
            if answered:
                raise
        async with aclosing(cast("Any", call())) as events:
            async for event in events:
                yield event


async def retried(adapters: AdapterRegistry, versions: Iterable[AdapterVersion], call: Callable[[], Awaitable[T]]) -> T:
    """What ``call`` gives, which reads the files of ``versions``; it is made again if these are whole after all."""
    try:
        return await call()
    except Error as error:
        if not is_damage(error):
            raise
        await asyncio.to_thread(adapters.check_damage, versions)
    return await call()


def stacked(*stacks: Stack) -> list[AdapterVersion]:
    """The versions in some stacks."""
    return [entry.adapter for stack in stacks for entry in stack.entries]
