"""New adapter versions: made durable, tried in the engine, and only then visible."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from ...core.backend import Backend
from ...core.errors import LOGITS_NOT_FINITE, Code, Error
from ...core.types import AdapterVersion
from ...store.store import Store
from ..common.shielding import nothing_collected, to_the_end
from .trial import is_finite

R = TypeVar("R")


async def publish(backend: Backend, store: Store, name: str, folder: Path, rank: int, commit: Callable[[], R]) -> R:
    """Publish a checked adapter folder through ``commit``, which writes the row (blocking; it runs on a thread).

    The files are durable, and the engine has read them and computed with them (finite values and logits, fit to the
    base), before the row exists: a version that can be seen can be used at once, and one that is refused was never
    seen.
    """
    async with nothing_collected(store):
        blob = await to_the_end(asyncio.to_thread(store.blobs.put_folder, folder))
        with store.blobs.holding([blob.digest]):
            path = await asyncio.to_thread(store.blobs.local_path, blob.digest)
            sha256 = await asyncio.to_thread(store.adapters.sha256, blob.digest)
            version = AdapterVersion(name, 0, blob.digest, rank, str(path), sha256)
            await backend.load(version)
            if not await is_finite(backend, version):
                raise Error(
                    Code.INVALID_ARGUMENT,
                    "the adapter's weights are too large: with them the model's logits are not finite; train it again"
                    " with a lower learning rate, or check lora_alpha",
                    reason=LOGITS_NOT_FINITE,
                )
            return await to_the_end(asyncio.to_thread(commit))
