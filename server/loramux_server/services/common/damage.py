"""Reading stored content once more where a reader found it damaged: only a local copy may have been."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from ...core.errors import Error, is_damage

T = TypeVar("T")


async def retried(check: Callable[[], object], call: Callable[[], Awaitable[T]]) -> T:
    """What ``call`` gives. Where it fails by damage, it is made again if ``check`` (on a thread) raises nothing."""
    try:
        return await call()
    except Error as error:
        if not is_damage(error):
            raise
    await asyncio.to_thread(check)
    return await call()
