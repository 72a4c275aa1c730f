"""Several event streams read as one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Generic, TypeVar

E = TypeVar("E")


class Merge(Generic[E]):
    """Reads several streams at once and gives their events with the stream's index, in order of arrival.

    Each stream is read by its own task, at most one event ahead per stream: a slow reader holds the streams back
    instead of filling memory. Streams that are stopped, or left over at ``aclose``, are closed before either returns.
    """

    def __init__(self, streams: Sequence[AsyncIterator[E]]) -> None:
        self._queue: asyncio.Queue[tuple[int, E | None, Exception | None]] = asyncio.Queue(maxsize=len(streams))
        self._tasks = {i: asyncio.create_task(self._pump(i, stream)) for i, stream in enumerate(streams)}
        self._stopped: set[int] = set()

    async def next(self) -> tuple[int, E | None]:
        """The next event and the index of its stream; None instead of an event: that stream ended.

        Raises what a stream raised. Must not be called once all streams ended or were stopped.
        """
        while True:
            index, event, error = await self._queue.get()
            if index in self._stopped:
                continue
            if error is not None:
                raise error
            return index, event

    async def stop(self, index: int) -> None:
        """Close one stream early; nothing more comes from it."""
        self._stopped.add(index)
        await self._end([self._tasks[index]])

    async def aclose(self) -> None:
        """Close all streams that are still open."""
        await self._end(list(self._tasks.values()))

    async def _pump(self, index: int, stream: AsyncIterator[E]) -> None:
        try:
            async for event in stream:
                await self._queue.put((index, event, None))
            await self._queue.put((index, None, None))
        except Exception as error:  # whatever it is, it belongs to the reader
            await self._queue.put((index, None, error))
        finally:
            close = getattr(stream, "aclose", None)
            if close is not None:
                await close()

    @staticmethod
    async def _end(tasks: list[asyncio.Task[None]]) -> None:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
