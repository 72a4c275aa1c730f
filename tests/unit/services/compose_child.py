"""Run by test_composing.py in a process of its own: a merge that dies at a failpoint on its way."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from loramux_server.core.callers.principal import LOCAL
from loramux_server.core.compose import ComposeCommand, ComposeResult
from loramux_server.core.types import StackItem
from loramux_server.host.failpoints import VARIABLE
from loramux_server.services.adapters.service import AdapterService
from loramux_server.services.adapters.types import ComposeRequest
from loramux_server.services.common.context import Context
from loramux_server.services.common.limits import Limits
from loramux_server.store.store import Store
from loramux_server.text import TextTokenizer
from tests.unit.services.adapter_files import write_adapter
from tests.unit.services.fakes import FakeBackend, engine_info
from tests.unit.services.tiny_tokenizer import write_tokenizer


def main(state: Path, answer: Path, failpoint: str) -> None:
    """Merge ``acme`` into ``mix`` and write its version to ``answer``, unless the failpoint is reached before."""
    os.environ[VARIABLE] = f"{failpoint}:kill"
    info = engine_info(64)

    async def composer(command: ComposeCommand) -> ComposeResult:
        write_adapter(Path(command.output), info, b=0.125)
        return ComposeResult(0.0)

    text = TextTokenizer.load(write_tokenizer(answer.with_suffix(".tokenizer")))
    service = AdapterService(Context(Store.open(state), text, info, Limits(), FakeBackend(info)), composer)
    version = asyncio.run(service.compose(ComposeRequest("mix", (StackItem("acme"),), principal=LOCAL)))
    answer.write_text(version.ref)
