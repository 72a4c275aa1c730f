"""The engine on a thread of this process."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from ...core.backend import EngineInfo
from ...core.errors import Code, Error
from .client import EngineClient
from .protocol import Command, Output

if TYPE_CHECKING:
    from ..loop import EngineLoop

log = logging.getLogger(__name__)

Emit = Callable[[list[Output]], object]
Build = Callable[[Emit], "tuple[EngineLoop, EngineInfo]"]
"""Loads the model and builds the loop. Called on the engine's thread, and only there may it import torch."""


class ThreadLink:
    """Runs an ``EngineLoop`` on one thread, which loads the model and is the only one to touch it."""

    def __init__(self, build: Build) -> None:
        self._build = build
        self._thread: threading.Thread | None = None
        self._engine: EngineLoop | None = None

    async def start(self, client: EngineClient) -> EngineInfo:
        """Load and run. Raises what the loading raised."""
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[EngineInfo] = loop.create_future()

        def emit(outputs: list[Output]) -> None:
            loop.call_soon_threadsafe(client.deliver, outputs)

        def run() -> None:
            try:
                engine, info = self._build(emit)
            except BaseException as error:
                loop.call_soon_threadsafe(_settle, ready, error)
                return
            self._engine = engine
            loop.call_soon_threadsafe(ready.set_result, info)
            try:
                engine.run()
            except Exception:  # a defect; nobody may wait for an engine that is gone
                log.exception("the engine stopped")
                self._engine = None
                loop.call_soon_threadsafe(client.fail_all, _gone())

        self._thread = threading.Thread(target=run, name="engine", daemon=True)
        self._thread.start()
        return await ready

    def send(self, command: Command) -> None:
        if self._engine is None:
            raise _gone()
        self._engine.submit(command)

    async def close(self) -> None:
        if self._thread is not None:
            if self._engine is not None:
                self._engine.stop()
            await asyncio.to_thread(self._thread.join)


def _gone() -> Error:
    return Error(Code.UNAVAILABLE, "the engine is not running")


def _settle(ready: asyncio.Future[EngineInfo], error: BaseException) -> None:
    if not ready.cancelled():
        ready.set_exception(error)


class ThreadBackend(EngineClient):
    """A ``Backend`` whose engine is a thread."""

    def __init__(self, build: Build) -> None:
        super().__init__(ThreadLink(build))
