"""Computing for a client: off the event loop, until nobody waits for it, and never in the way of a stop."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from ...core.watch import Watch

R = TypeVar("R")

THREADS = 4
"""Pieces of such work at once. They have threads of their own, so that what is quick never waits for one."""
PREPARED_AT_ONCE = 8
"""Requests that are tokenised at once: on other threads again, for work that is bounded but cannot look up."""
_NAME = "loramux-work"
_pool = ThreadPoolExecutor(THREADS, thread_name_prefix=_NAME)
_alone = ThreadPoolExecutor(1, thread_name_prefix=f"{_NAME}-alone")
_preparing = ThreadPoolExecutor(PREPARED_AT_ONCE, thread_name_prefix="loramux-prepare")


async def compute(work: Callable[[Watch], R], *, alone: bool = False) -> R:
    """Run ``work`` on a thread; cancelling this (a deadline, a client that went, a stop) ends it at its next step.

    For work that grows with what a client sent. ``work`` calls its argument between steps. Of work that runs
    ``alone`` there is one piece at a time, and what waits for its turn keeps no other work from a thread.
    """
    watch = Watch()
    context = contextvars.copy_context()
    try:
        return await asyncio.get_running_loop().run_in_executor(_alone if alone else _pool, context.run, work, watch)
    finally:
        watch.end()


async def prepare(work: Callable[[], R]) -> R:
    """Run what comes before a request on a thread. One that nobody waits for any more keeps its place until it ends."""
    return await asyncio.get_running_loop().run_in_executor(_preparing, contextvars.copy_context().run, work)


def threads_ended(seconds: float) -> bool:
    """Whether all threads but this one have ended, ``seconds`` from now at the latest.

    For the end of the process: nothing can be computed afterwards.
    """
    for pool in (_pool, _alone, _preparing):
        pool.shutdown(wait=False, cancel_futures=True)
    latest = time.monotonic() + seconds
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join(max(0.0, latest - time.monotonic()))
            if thread.is_alive():
                return False
    return True
