"""Work that a cancellation of its caller must not interrupt."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from ...store.store import Store

R = TypeVar("R")


async def to_the_end(work: Coroutine[Any, Any, R]) -> R:
    """Await ``work``; a cancellation is passed on only when it is done."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.gather(task, return_exceptions=True)
        raise


@asynccontextmanager
async def nothing_collected(store: Store) -> AsyncIterator[None]:
    """Until a row names them, files stay: entering waits for a collection that runs; while inside, none begins."""
    async with AsyncExitStack() as stack:
        await to_the_end(asyncio.to_thread(stack.enter_context, store.blobs.publishing()))
        yield


@asynccontextmanager
async def temporary_folder(store: Store, prefix: str) -> AsyncIterator[Path]:
    """A folder of the state directory that is gone afterwards, whatever happens."""
    folder = await to_the_end(asyncio.to_thread(store.state.new_tmp, prefix))
    try:
        yield folder
    finally:
        await to_the_end(asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True))
