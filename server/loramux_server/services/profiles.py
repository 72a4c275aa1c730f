"""Profiles of the engine: taken into a folder that is gone afterwards, whoever leaves or dies meanwhile."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from ..core.backend import ProfileResult
from ..core.bounds import Bound
from ..core.call import about
from ..core.errors import invalid
from ..host.files import storage_errors
from .common.context import Context
from .common.shielding import temporary_folder
from .common.types import FileSpec

SECONDS = 10.0
"""Of a profile that names none."""
FILE = "loramux-profile.json.gz"
CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Profile:
    """A profile that is about to be sent."""

    files: tuple[FileSpec, ...]
    result: ProfileResult


async def take_profile(context: Context, seconds: float, *, kernels: bool) -> AsyncGenerator[Profile | bytes]:
    """Record for ``seconds`` (0: ``SECONDS``); give what was recorded, then the bytes of its file.

    Raises INVALID_ARGUMENT for seconds out of bounds, RESOURCE_EXHAUSTED while another profile is taken or the disk is
    full, UNAVAILABLE when the engine dies. Closing it early ends the recording.
    """
    limits = context.limits
    seconds = seconds or min(SECONDS, limits.max_profile_seconds)
    if violations := [*Bound(0, limits.max_profile_seconds, above=True).violations("seconds", seconds)]:
        raise invalid(violations)
    about("engine", seconds=f"{seconds:g}")
    async with temporary_folder(context.store, "profile") as folder:
        path = folder / FILE
        result = await context.backend.profile(
            seconds, str(path), most_events=limits.max_profile_events, kernels=kernels
        )
        with storage_errors("cannot read the profile"), path.open("rb") as file:
            yield Profile((FileSpec(FILE, os.fstat(file.fileno()).st_size),), result)
            while data := await asyncio.to_thread(file.read, CHUNK_BYTES):
                yield data
