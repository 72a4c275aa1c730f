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
    """Await ``work``; a cancellation, and any more of them, are passed on only when it is done."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is None:
        return task.result()
    if not task.cancelled():
        task.exception()  # nobody is there to be told
    raise cancelled


@asynccontextmanager
async def nothing_collected(store: Store) -> AsyncIterator[None]:
    """Until a row names them, files stay: entering waits for a collection that runs; while inside, none begins."""
    async with AsyncExitStack() as stack:
        await to_the_end(asyncio.to_thread(stack.enter_context, store.blobs.publishing()))
        yield


@asynccontextmanager
async def temporary_folder(store: Store, prefix: str) -> AsyncIterator[Path]:
    """A folder of the state directory that is gone afterwards, whatever happens."""
    made: list[Path] = []
    try:
        # A cancellation that comes meanwhile finds the folder made.
        await to_the_end(asyncio.to_thread(lambda: made.append(store.state.new_tmp(prefix))))
        yield made[0]
    finally:
        for folder in made:
            await to_the_end(asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True))
