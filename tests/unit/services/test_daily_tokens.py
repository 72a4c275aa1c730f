"""A job whose tenant has used up the training tokens of the day waits in the queue, and goes on when it may."""

from __future__ import annotations

import asyncio
import time

import pytest

from loramux_server.core.backend import EngineInfo
from loramux_server.core.callers.principal import LOCAL
from loramux_server.core.callers.quota import Limit
from loramux_server.core.callers.usage import Amounts, UsageKey, UsageMethod, day_of
from loramux_server.core.jobs import JobState
from loramux_server.services.access.quota_follower import QuotaFollower
from loramux_server.services.jobs.running import daily_tokens
from loramux_server.store.store import Store
from loramux_server.store.usage import add_usage
from loramux_server.text import TextTokenizer

from .scripted_training import ScriptedTraining
from .test_training_jobs import SUCCESS, Server, states


@pytest.fixture
def server(store: Store, text: TextTokenizer, info: EngineInfo) -> Server:
    return Server.over(store, text, info)


async def limit(server: Server, name: Limit, value: int | None) -> None:
    """As the command and the app do."""
    await asyncio.to_thread(server.store.quotas.set, "tenant:default", {name: value})
    await QuotaFollower(server.context.meter, server.store.quotas, None).refresh()
    server.runner.board.queued.set()


async def test_a_running_job_is_queued_again_and_goes_on(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daily_tokens, "LOOK_SECONDS", 0.01)
    server.training.at, server.training.hang = 2, True
    job = await server.job()
    await limit(server, "training_tokens_per_day", 1000)
    async with server.working():
        await server.training.waiting.wait()
        with server.store.database.write() as connection:
            key = UsageKey(day_of(time.time()), "default", "acme", UsageMethod.TRAIN)
            add_usage(connection, {key: Amounts(trained_tokens=1000)})
        await server.training.gone.wait()
        waiting = await asyncio.to_thread(server.store.jobs.get, job.id)
        assert waiting.state is JobState.QUEUED
        server.backend.training = ScriptedTraining(server.training.info)
        await limit(server, "training_tokens_per_day", None)
        events = await server.finished(job)
    assert states(events) == [JobState.QUEUED, JobState.RUNNING, *SUCCESS]
    why = [e.event.message for e in events if e.event.message.startswith("waits until")]
    assert "1000 tokens were trained on today, and the tenant's quota is 1000" in why[0]


async def test_jobs_over_the_running_limit_run_one_after_the_other(
    store: Store, text: TextTokenizer, info: EngineInfo
) -> None:
    server = Server.over(store, text, info, max_jobs=2)
    server.training.at, server.training.hang = 2, True
    await limit(server, "jobs_running", 1)
    first, second = await server.job(name="one"), await server.job(name="two")
    async with server.working():
        await server.training.waiting.wait()
        assert {(await server.service.get_job(job.id, LOCAL)).state for job in (first, second)} == {
            JobState.RUNNING,
            JobState.QUEUED,
        }
        await limit(server, "jobs_running", 2)
        server.training.waiting.clear()
        await server.training.waiting.wait()
        assert (await server.service.get_job(second.id, LOCAL)).state is JobState.RUNNING
