"""What an operator does meanwhile: keys, quotas, shared adapters, and an engine that is killed."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import loramux
from loramux import AsyncClient
from tests.e2e.server_process import ServerProcess, environment
from tests.e2e.test_engine_dies import engine_pid

from .actors import Soak

REVOKED_WITHIN = 2.0
"""Seconds after which a revoked key must be refused."""
BETWEEN_KILLS = 75.0
"""Seconds between two kills of the engine: it is given up after five crashes in five minutes."""


async def command(home: Path, state: Path, *words: str) -> Any:
    """What ``loramux WORDS --json`` answers, run beside the server as its operator does."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "loramux", *words, "--state-dir", str(state), "--json",
        env=environment(home), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    said, errors = await process.communicate()
    if process.returncode:
        raise RuntimeError(f"loramux {' '.join(words)}: {errors.decode()}")
    return json.loads(said) if said.strip() else None


async def create_key(home: Path, state: Path, tenant: str, *scopes: str) -> dict[str, str]:
    """A new key: its ``id`` and its text under ``key``."""
    words = [word for scope in scopes for word in ("--scope", scope)]
    made: dict[str, str] = await command(home, state, "keys", "create", "--tenant", tenant, *words)
    return made


async def keys(soak: Soak, home: Path, state: Path, draw: random.Random) -> None:
    """Create a key, use it, revoke it: soon it is worth nothing."""
    while not soak.stop.is_set():
        tenant = draw.choice(soak.tenants).name
        made = await create_key(home, state, tenant, "infer")
        async with AsyncClient(soak.address, api_key=made["key"], timeout=30) as client:
            await _until_known(soak, client)
            await command(home, state, "keys", "revoke", made["id"])
            revoked = time.monotonic()
            while not await refused(client):
                if time.monotonic() - revoked > REVOKED_WITHIN:
                    soak.ledger.violate(f"a key works {time.monotonic() - revoked:.1f} s after it was revoked")
                    break
                await soak.pause(0.05)
        soak.ledger.note("create and revoke a key")
        await soak.pause(draw.uniform(2, 8))


async def _until_known(soak: Soak, client: AsyncClient) -> None:
    deadline = time.monotonic() + REVOKED_WITHIN
    while await refused(client):
        if time.monotonic() > deadline:
            soak.ledger.violate(f"a new key is refused for more than {REVOKED_WITHIN:g} s")
            return
        await soak.pause(0.05)


async def refused(client: AsyncClient) -> bool:
    """Whether the server does not know the caller."""
    try:
        await client.tokenize("hello")
    except loramux.Unauthenticated:
        return True
    except loramux.LoramuxError:
        pass
    return False


async def quotas(soak: Soak, home: Path, state: Path, draw: random.Random) -> None:
    """Tighten and loosen one tenant's limits."""
    while not soak.stop.is_set():
        await soak.pause(draw.uniform(5, 20))
        tenant = draw.choice(soak.tenants).name
        for limit in (str(draw.randint(60, 600)), "none"):
            words = ("--requests-per-minute", limit, "--concurrent", limit)
            await command(home, state, "quotas", "set", "--tenant", tenant, *words)
            soak.ledger.note("set a quota")
            await soak.pause(draw.uniform(3, 8))


async def kills(soak: Soak, server: ServerProcess, draw: random.Random) -> None:
    """Kill the engine now and then; the last one lives long enough to be looked at."""
    while not soak.stop.is_set():
        await soak.pause(BETWEEN_KILLS * draw.uniform(0.9, 1.2))
        if soak.stop.is_set():
            return
        os.kill(engine_pid(server), signal.SIGKILL)
        soak.ledger.note("kill the engine")
