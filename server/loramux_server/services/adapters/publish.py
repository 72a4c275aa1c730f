"""New adapter versions: checked, made durable, tried in the engine, and only then visible."""

from __future__ import annotations

import asyncio
import json
import os
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import TypeVar

from ...core.backend import Backend, EngineInfo, ScoreCommand
from ...core.callers.principal import SERVER_TENANT
from ...core.errors import LOGITS_NOT_FINITE, Code, Error
from ...core.types import AdapterVersion, Stack, StackEntry
from ...host.files import open_regular
from ...peft.schema import WEIGHTS_FILE, AdapterConfig, check_folder
from ...store.store import Store
from ..common.context import Context
from ..common.limits import Limits
from ..common.shielding import nothing_collected, to_the_end

R = TypeVar("R")
TRIAL_IDS = (0, 1, 2, 3, 4, 5, 6, 7)
"""Tokens that every vocabulary has. What they say does not matter, only that the logits after them are finite."""


async def publish(backend: Backend, store: Store, name: str, folder: Path, rank: int, commit: Callable[[], R]) -> R:
    """Publish a checked adapter folder through ``commit``, which writes the row (blocking; it runs on a thread).

    The files are durable, and the engine has read them and computed with them (finite values and logits, fit to the
    base), before the row exists: a version that can be seen can be used at once, and one that is refused was never
    seen.
    """
    async with nothing_collected(store):
        blob = await to_the_end(asyncio.to_thread(store.blobs.put_folder, folder))
        with store.blobs.holding([blob.digest]):
            version = AdapterVersion(name, 0, blob.digest, rank)
            await backend.load(version)
            if not await is_finite(backend, version):
                raise Error(
                    Code.INVALID_ARGUMENT,
                    "the adapter's weights are too large: with them the model's logits are not finite; train it again"
                    " with a lower learning rate, or check lora_alpha",
                    reason=LOGITS_NOT_FINITE,
                )
            return await to_the_end(asyncio.to_thread(commit))


@asynccontextmanager
async def candidate(context: Context, name: str, folder: Path, rank: int) -> AsyncIterator[AdapterVersion]:
    """A checked adapter folder as the engine can be asked with it, before it is a version of ``name``.

    Its files stay as long; afterwards the engine forgets it, and they are collected.
    """
    store = context.store
    with ExitStack() as holds:
        async with nothing_collected(store):
            blob = await to_the_end(asyncio.to_thread(store.blobs.put_here, folder))
            holds.enter_context(store.blobs.holding([blob.digest]))
        try:
            yield AdapterVersion(name, 0, blob.digest, rank)
        finally:
            holds.close()
            context.unused.set()
            with suppress(Error):  # an engine that is gone has forgotten it anyway
                await context.backend.unload(blob.digest)


async def is_finite(backend: Backend, version: AdapterVersion) -> bool:
    """Whether the logits are finite with this version alone at weight 1, by one forward over a few tokens.

    Raises what the engine says for any other failure, such as UNAVAILABLE.
    """
    command = ScoreCommand(
        id=f"trial-{uuid.uuid4().hex}",
        prompt_ids=TRIAL_IDS[:1],
        continuation_ids=TRIAL_IDS[1:],
        stack=Stack((StackEntry(version),)),
        tenant=SERVER_TENANT,
    )
    try:
        await backend.score(command)
    except Error as error:
        if error.reason != LOGITS_NOT_FINITE:
            raise
        return False
    return True


def verify_trained(folder: Path, info: EngineInfo, limits: Limits) -> AdapterConfig:
    """Check a folder that the engine wrote; blocking. That its values are finite is checked by loading it.

    Raises INVALID_ARGUMENT or FAILED_PRECONDITION when its keys and shapes do not match the base, or when its delta
    is zero in every module: such an adapter would load, and serve the base.
    """
    config = check_folder(
        folder, info.linear_modules, info.base_fingerprint, max_rank=limits.max_rank, allow_hard_links=True
    )
    if not has_effect(folder, config):
        raise Error(
            Code.FAILED_PRECONDITION,
            "the trained adapter changes nothing: its delta is zero in every module; train for more steps or with a"
            " higher learning_rate",
            reason="ADAPTER_WITHOUT_EFFECT",
        )
    return config


def has_effect(folder: Path, config: AdapterConfig) -> bool:
    """Whether some module has an A and a B that are not all zero, seen from the bytes of a checked folder."""
    with os.fdopen(open_regular(folder / WEIGHTS_FILE), "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))

        def is_zero(key: str) -> bool:
            start, end = header[key]["data_offsets"]
            file.seek(8 + length + start)
            return not file.read(end - start).strip(b"\0")

        return any(not is_zero(module.b.key) and not is_zero(module.a.key) for module in config.modules)
