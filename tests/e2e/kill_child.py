"""Run by test_random_kills.py in a process of its own: a whole server in front of an engine that only pretends."""

from __future__ import annotations

import asyncio
from multiprocessing.connection import Connection
from pathlib import Path

from loramux_server.app import running_app
from loramux_server.config import Address, Settings
from tests.unit.services.fakes import FakeBackend, Script, engine_info

VOCABULARY = 64


def main(state: Path, tokenizer: Path, ready: Connection) -> None:
    """Serve until killed; ``ready`` is told the address."""
    asyncio.run(_serve(state, tokenizer, ready))


async def _serve(state: Path, tokenizer: Path, ready: Connection) -> None:
    settings = Settings(state_dir=state, listen=Address("127.0.0.1", 0), metrics_listen=None)
    backend = FakeBackend(
        engine_info(VOCABULARY, tokenizer_path=str(tokenizer)), script=lambda command: Script(token_ids=(5, 6, 7))
    )
    async with running_app(settings, backend) as app:
        ready.send(app.address)
        await asyncio.Event().wait()
