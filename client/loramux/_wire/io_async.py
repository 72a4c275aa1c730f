"""What the async client does in its own way; ``_io_sync`` has the same names for the sync client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, TypeVar

from ..types import JobInfo

if TYPE_CHECKING:
    from .._async.jobs import AsyncJob

T = TypeVar("T")

sleep = asyncio.sleep
blocking = asyncio.to_thread
"""Run what reads or writes files, beside the event loop."""


async def sent(items: Iterator[T]) -> AsyncIterator[T]:
    """The requests of an upload, made in a thread, because that reads files."""
    while (item := await asyncio.to_thread(next, items, None)) is not None:
        yield item


def latest(job: AsyncJob) -> JobInfo:
    """What a job's properties show: a property cannot ask the server."""
    return job.info
