"""Several event streams read as one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Generic, TypeVar

E = TypeVar("E")


def read_together(streams: Sequence[AsyncIterator[E]]) -> Merge[E] | Single[E]:
    """Read ``streams`` as one; a single one without the tasks and the queue that several need."""
    return Single(streams[0]) if len(streams) == 1 else Merge(streams)


class Single(Generic[E]):
    """One stream with the interface of :class:`Merge`, read by the caller's own task."""

    def __init__(self, stream: AsyncIterator[E]) -> None:
        self._stream = stream

    async def next(self) -> tuple[int, E | None]:
        """The next event, None at the end. A cancel of this call closes the stream."""
        try:
            return 0, await anext(self._stream)
        except StopAsyncIteration:
            return 0, None

    async def stop(self, index: int) -> None:
        """Close the stream early."""
        await self.aclose()

    async def aclose(self) -> None:
        """Close the stream; fine when it has ended."""
        await _close(self._stream)


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
            await _close(stream)

    @staticmethod
    async def _end(tasks: list[asyncio.Task[None]]) -> None:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _close(stream: AsyncIterator[E]) -> None:
    close = getattr(stream, "aclose", None)
    if close is not None:
        await close()
