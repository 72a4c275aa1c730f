"""Run by test_random_kills.py in a process of its own: a whole server in front of an engine that only pretends."""

from __future__ import annotations

import asyncio
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from unittest.mock import patch

from loramux_server.app import running_app
from loramux_server.config import Address, Settings
from loramux_server.core.compose import ComposeCommand, ComposeResult
from loramux_server.services.adapters.service import AdapterService
from tests.unit.services.adapter_files import write_adapter
from tests.unit.services.fakes import FakeBackend, Script, engine_info

VOCABULARY = 64
INFO = engine_info(VOCABULARY)


def main(state: Path, tokenizer: Path, ready: Connection, usage_flush_seconds: float = 5.0) -> None:
    """Serve until killed; ``ready`` is told the address."""
    with patch("loramux_server.app.app.AdapterService", partial(AdapterService, composer=_compose)):
        asyncio.run(_serve(state, tokenizer, ready, usage_flush_seconds))


async def _compose(command: ComposeCommand) -> ComposeResult:
    """In place of a process that takes seconds to begin."""
    write_adapter(Path(command.output), INFO, b=sum(entry.weight for entry in command.stack.entries))
    return ComposeResult(0.0)


async def _serve(state: Path, tokenizer: Path, ready: Connection, usage_flush_seconds: float) -> None:
    settings = Settings(
        state_dir=state,
        listen=Address("127.0.0.1", 0),
        http_listen=None,
        metrics_listen=None,
        usage_flush_seconds=usage_flush_seconds,
    )
    info = engine_info(VOCABULARY, tokenizer_path=str(tokenizer))
    backend = FakeBackend(info, script=lambda command: Script(token_ids=(5, 6, 7)))
    async with running_app(settings, backend) as app:
        ready.send(app.address)
        await asyncio.Event().wait()
