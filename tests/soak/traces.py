"""What Python memory the front took while it was under load and did not let go, by where it was allocated."""

from __future__ import annotations

import asyncio
import tracemalloc
from pathlib import Path

from .traced import ASK, SNAPSHOT

MOST = 25
"""Places that are told."""


async def begin(folder: Path) -> None:
    """Have a server that ``tests.soak.traced`` runs remember what it allocates from now on."""
    await asyncio.to_thread((folder / ASK).write_text, "begin")


async def held(folder: Path) -> list[str]:
    """What of it is held now: the largest places, each with its callers."""
    await asyncio.to_thread((folder / ASK).write_text, "end")
    while not (folder / SNAPSHOT).exists():  # noqa: ASYNC110 - the file is all that tells
        await asyncio.sleep(0.2)
    found = await asyncio.to_thread(tracemalloc.Snapshot.load, str(folder / SNAPSHOT))
    places = found.statistics("traceback")
    lines = [f"Python memory that was allocated under load and is held: {sum(place.size for place in places)} bytes"]
    for place in places[:MOST]:
        lines.append(f"{place.size} bytes in {place.count} blocks:")
        lines += place.traceback.format(most_recent_first=True)
    return lines
