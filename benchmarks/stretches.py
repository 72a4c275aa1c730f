"""A stretch of training on a server: its steps as they end, and the speed of the whole ones."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from loramux import AsyncJob


@dataclass(frozen=True, slots=True)
class Stretch:
    """Training for a while: tokens of whole steps, and the seconds that they took."""

    tokens: int
    seconds: float


def rate(parts: Sequence[Stretch]) -> float:
    """Training tokens per second over several stretches. Raises ValueError when no step ended."""
    seconds = sum(part.seconds for part in parts)
    if not seconds:
        raise ValueError("no training step ended: measure for longer")
    return sum(part.tokens for part in parts) / seconds


def between(ends: Sequence[tuple[float, int]], begin: float, end: float) -> Stretch:
    """Whole steps within a window, from the (time, tokens) of their ends; the first end there only starts the clock."""
    inside = [(at, tokens) for at, tokens in ends if begin <= at <= end]
    if len(inside) < 2:
        return Stretch(0, 0.0)
    return Stretch(sum(tokens for _, tokens in inside[1:]), inside[-1][0] - inside[0][0])


class Trained:
    """A job on the server, and the times of its steps' ends as this process's clock of the day tells them."""

    def __init__(self, job: AsyncJob) -> None:
        self._job = job
        self.ends: list[tuple[float, int]] = []
        self._news = asyncio.Event()
        self._task = asyncio.create_task(self._follow())

    async def reach(self, steps: int) -> None:
        """Return once so many steps are done. Raises RuntimeError if the job ended before."""
        while len(self.ends) < steps:
            self._news.clear()
            waiting = asyncio.create_task(self._news.wait())
            await asyncio.wait({waiting, self._task}, return_when=asyncio.FIRST_COMPLETED)
            if not waiting.done():
                waiting.cancel()
                self._task.result()
                raise RuntimeError(f"the job ended after {len(self.ends)} steps, before it was measured")

    def lasts(self) -> bool:
        """Whether the job still runs. Raises what ended following it."""
        if self._task.done():
            self._task.result()
        return not self._task.done()

    async def cancel(self) -> None:
        await self._job.cancel()
        await self._task

    async def _follow(self) -> None:
        async for event in self._job.events():
            if event.type == "step":
                self.ends.append((event.time, int(event.metrics["tokens"])))
                self._news.set()
