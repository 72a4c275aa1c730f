"""The HTTP door on loopback over real services and a scripted engine, OpenAI's and Anthropic's clients before it.

Every answer that these clients get is compared with ``/openapi.json``.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import anthropic
import httpx2
import openai
import pytest

from loramux_server.config import Address
from loramux_server.core.types import SamplingParams
from loramux_server.http.exchanges.limits import Limits as HttpLimits
from loramux_server.http.server import HttpServer
from loramux_server.services.access.access import Access
from loramux_server.services.adapters.service import AdapterService
from loramux_server.services.availability import Availability, Readiness, Services
from loramux_server.services.common.calls import Calls, GenerationLimit
from loramux_server.services.common.context import Context
from loramux_server.services.inference.service import GenerationService
from loramux_server.services.jobs.board import JobBoard
from loramux_server.services.jobs.running.runner import JobRunner
from loramux_server.services.jobs.service import TrainingService
from loramux_server.services.jobs.uploads import UploadService
from loramux_server.services.usage.recorder import UsageRecorder
from loramux_server.services.usage.service import UsageService
from tests.unit.rpc.scripted import Counted
from tests.unit.services.conftest import backend, context, info, limits, text
from tests.unit.services.fakes import FakeBackend, Open, Script
from tests.unit.services.scripted_training import ScriptedTraining

from .conforming import Conforming

__all__ = ["backend", "context", "info", "limits", "text"]


@dataclass
class Http:
    """The door, what is behind it and what is in front."""

    server: HttpServer
    availability: Availability
    backend: FakeBackend
    context: Context
    calls: Counted
    access: Access
    openai: openai.AsyncOpenAI
    anthropic: anthropic.AsyncAnthropic
    raw: httpx2.AsyncClient
    training: ScriptedTraining
    runner: JobRunner

    def answers(self, *texts: str, **script: object) -> None:
        """The engine answers each generation with the next of these texts, then with the last of them."""
        left = list(texts)

        def play(command: object) -> Script:
            ids = self.context.text.encode(left.pop(0) if len(left) > 1 else left[0])
            return Script(tuple(ids), **script)  # type: ignore[arg-type]

        self.backend.script = play

    @asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        """Jobs run meanwhile."""
        task = asyncio.create_task(self.runner.run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
async def http(context: Context, backend: FakeBackend) -> AsyncIterator[Http]:
    availability, counted, access = Availability("1.2.3"), Counted(), Access(Open(), context.meter)
    availability.context = context
    board, usage = JobBoard(context.store), UsageRecorder(context.store.usage)
    backend.training = training = ScriptedTraining(context.info)
    service = TrainingService(context, board)
    availability.services = Services(
        GenerationService(context, usage, SamplingParams(max_tokens=64)),
        AdapterService(context),
        service,
        UploadService(context, service),
        UsageService(context, usage),
    )
    runner = JobRunner(context, board, retry_seconds=0.0001)
    calls = Calls(counted, GenerationLimit(4), access)
    server = HttpServer(availability, calls, Address("127.0.0.1", 0), limits=HttpLimits(stall_timeout=5.0))
    await server.start()
    availability.readiness = Readiness.READY
    await server.set_serving(True)
    url = f"http://{server.address}"
    hooks = {"response": [Conforming(server.openapi).check]}
    inner = openai.DefaultAsyncHttpxClient(event_hooks=hooks, timeout=20)
    other = anthropic.DefaultAsyncHttpxClient(event_hooks=hooks, timeout=20)
    try:
        async with (
            openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, http_client=inner) as client,
            anthropic.AsyncAnthropic(base_url=url, api_key="none", max_retries=0, http_client=other) as messages,
            httpx2.AsyncClient(base_url=url, timeout=20, event_hooks=hooks) as raw,
        ):
            yield Http(server, availability, backend, context, counted, access, client, messages, raw, training, runner)
    finally:
        await server.drain(0)
        await server.stop()
