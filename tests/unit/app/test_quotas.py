"""Quotas through a real server: set by the command while it runs, felt by clients within two seconds."""

from __future__ import annotations

import asyncio
import time
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from loramux import AsyncClient, ResourceExhausted
from loramux.cli import main
from loramux_server.app.app import App
from loramux_server.config import Settings
from loramux_server.core.callers.principal import LOCAL
from tests.unit.services.fakes import FakeBackend, Script, engine_info
from tests.unit.services.tiny_tokenizer import write_tokenizer


@asynccontextmanager
async def started(home: Path, **shared: str) -> AsyncIterator[App]:
    tokenizer = write_tokenizer(home / "tokenizer")
    backend = FakeBackend(engine_info(400, tokenizer_path=str(tokenizer)), script=lambda _: Script((5, 6)))
    settings = Settings(
        state_dir=home / "state",
        listen="127.0.0.1:0",
        http_listen="off",
        metrics_listen="127.0.0.1:0",
        drain_timeout=0.01,
        **shared,  # type: ignore[arg-type]
    )
    app = App(settings, backend)
    await app.start()
    try:
        yield app
    finally:
        await app.stop()


@pytest.fixture
async def app(tmp_path: Path) -> AsyncIterator[App]:
    async with started(tmp_path) as app:
        yield app


def metrics(app: App) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{app.metrics_port}/metrics", timeout=10) as answer:
        return str(answer.read().decode())


async def limit(app: App, *words: str) -> None:
    """Change limits as an operator does, and wait as long as is promised."""
    arguments = ["quotas", "set", "--tenant", "default", *words, "--state-dir", str(app.settings.state_dir)]
    began = time.monotonic()
    assert await asyncio.to_thread(main, arguments) == 0
    follower = app._quotas
    assert follower is not None
    revision = follower._revision
    while follower._revision == revision:
        await asyncio.sleep(0.02)
        assert time.monotonic() - began < 2 + 5  # two seconds are promised; a busy machine gets more


@pytest.mark.slow
async def test_limits_set_beside_a_running_server_hold_and_go(app: App, tmp_path: Path) -> None:
    async with AsyncClient(app.address) as client:
        await client.generate("the end", max_tokens=8)
        await limit(app, "--requests-per-minute", "2", "--tokens-per-minute", "100")
        with pytest.raises(ResourceExhausted) as refused:
            await client.generate("the end", max_tokens=200)
        assert refused.value.reason == "QUOTA_EXCEEDED"
        assert refused.value.limit == "tokens_per_minute"
        assert refused.value.violations[0].field == "tenant:default"
        assert "can never be granted" in refused.value.message
        assert refused.value.retry_after is None
        await client.generate("the end", max_tokens=8)
        with pytest.raises(ResourceExhausted) as refused:
            await client.adapters.list()
        assert refused.value.limit == "requests_per_minute"
        assert 0 < (refused.value.retry_after or 0) <= 30
        await client.info()  # is never counted
        page = await asyncio.to_thread(metrics, app)
        assert 'loramux_quota_refusals_total{limit="requests_per_minute",tenant="default"} 1.0' in page
        assert 'loramux_quota_refusals_total{limit="tokens_per_minute",tenant="default"} 1.0' in page

        await limit(app, "--requests-per-minute", "none", "--datasets", "1")
        first, second = tmp_path / "1.jsonl", tmp_path / "2.jsonl"
        first.write_text('{"text": "one"}\n')
        second.write_text('{"text": "two"}\n')
        await client.datasets.upload(first)
        with pytest.raises(ResourceExhausted, match="datasets is limited to 1: 1 in use, 1 more asked for") as refused:
            await client.datasets.upload(second)
        assert refused.value.retry_after is None


@pytest.mark.slow
async def test_servers_of_one_database_share_what_a_tenant_may(tmp_path: Path) -> None:
    """What one granted, the other refuses a second later; one that starts anew hears it as well."""
    database = {"database_url": f"sqlite:///{tmp_path}/shared.db", "blobs_url": f"file://{tmp_path}/blobs"}
    (tmp_path / "blobs").mkdir()

    async def call(client: AsyncClient, times: int) -> None:
        for _ in range(times):
            await client.adapters.list()

    async def left(app: App, most: int) -> None:
        began = time.monotonic()
        while not (rates := app._meter.rates(LOCAL)) or rates[0].left > most:
            await asyncio.sleep(0.02)
            assert time.monotonic() - began < 2 + 5  # a second is promised; a busy machine gets more

    async with started(tmp_path / "one", **database) as one:
        assert one._store is not None
        await asyncio.to_thread(one._store.quotas.set, "*", {"requests_per_minute": 20})
        async with started(tmp_path / "two", **database) as two:
            for app in (one, two):
                await left(app, 20)
            async with AsyncClient(one.address) as client:
                await call(client, 20)
            await left(two, 10)
            async with AsyncClient(two.address) as client:
                with pytest.raises(ResourceExhausted) as refused:
                    await call(client, 20)
            assert refused.value.limit == "requests_per_minute"
        async with started(tmp_path / "three", **database) as three:
            await left(three, 15)
