"""A whole server inside another program: for tests, examples and notebooks."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from ..config import Settings
from ..core.backend import Backend
from .app import App


@asynccontextmanager
async def running_app(settings: Settings, backend: Backend | None = None) -> AsyncIterator[App]:
    """A server on the running loop, ready when the block begins and stopped when it ends.

    With port 0 in the settings, ``app.address`` and ``app.metrics_port`` tell the real ones.
    """
    app = App(settings, backend)
    try:
        await app.start()
        yield app
    finally:
        await app.stop()


@contextmanager
def running_app_thread(settings: Settings, backend: Backend | None = None) -> Iterator[App]:
    """As ``running_app``, for code without a loop: the server has a thread and a loop of its own.

    Use it with the sync client only; two loops that both speak grpc.aio in one process get in each other's way.
    """
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="loramux-server", daemon=True)
    thread.start()
    context = running_app(settings, backend)
    try:
        app = asyncio.run_coroutine_threadsafe(context.__aenter__(), loop).result()
        try:
            yield app
        finally:
            asyncio.run_coroutine_threadsafe(context.__aexit__(None, None, None), loop).result()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
