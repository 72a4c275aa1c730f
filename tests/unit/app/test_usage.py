"""Usage through a whole server: told by the client and the command, and written when it stops."""

from __future__ import annotations

import asyncio
import csv
import io
import json
from collections.abc import AsyncIterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest
import structlog

from loramux import AsyncClient, InvalidArgument, UsageRow
from loramux.cli import main
from loramux_server.app.app import App
from loramux_server.config import Settings
from loramux_server.core.callers.usage import Dimension, UsageQuery
from loramux_server.store.store import Store
from tests.unit.services.adapter_files import write_adapter
from tests.unit.services.fakes import FakeBackend, Script, engine_info
from tests.unit.services.tiny_tokenizer import write_tokenizer


@pytest.fixture
async def app(tmp_path: Path) -> AsyncIterator[App]:
    tokenizer = write_tokenizer(tmp_path / "tokenizer")
    backend = FakeBackend(engine_info(400, tokenizer_path=str(tokenizer)), script=lambda _: Script((5, 6)))
    settings = Settings(
        state_dir=tmp_path / "state",
        listen="127.0.0.1:0",
        http_listen="off",
        metrics_listen="off",
        drain_timeout=0.01,
        usage_flush_seconds=3600,
    )
    app = App(settings, backend)
    with structlog.testing.capture_logs():  # they are not what the command prints
        await app.start()
        yield app
        await app.stop()


@pytest.fixture
async def used(app: App, tmp_path: Path) -> App:
    """Two answers of the base, and one of an adapter, which is gone since."""
    write_adapter(tmp_path / "acme", engine_info(400))
    async with AsyncClient(app.address) as client:
        await client.adapters.upload("acme", tmp_path / "acme")
        for adapters in ([], [], ["acme"]):
            answer = await client.generate("the end", adapters=adapters, max_tokens=2)
            assert answer.usage.completion_tokens == 2
        await client.score("the", continuation=" end")
        await client.embed(["the", "end"], adapters=["acme"])
        await client.adapters.delete("acme")
    return app


def today() -> date:
    return datetime.now(UTC).date()


async def test_the_client_is_told_what_was_used(used: App) -> None:
    async with AsyncClient(used.address) as client:
        base, acme = await client.usage(today() - timedelta(days=1), group_by=["adapter"])
        if base.adapter == "acme":
            base, acme = acme, base
        assert (base.requests, base.output_tokens, acme.requests, acme.output_tokens) == (3, 4, 2, 2)
        assert 0 < acme.adapter_hours < 1
        assert base == UsageRow(
            adapter="base", requests=3, input_tokens=base.input_tokens, output_tokens=4, cached_tokens=0
        )
        methods = await client.usage(str(today() - timedelta(days=1)), group_by="method", adapter="acme")
        assert {row.method: row.requests for row in methods} == {"embed": 1, "generate": 1, "store": 0}
        assert await client.usage("2020-01-01", date(2020, 2, 1)) == []
        assert len(await client.usage(today() - timedelta(days=1), limit=1)) == 1
        for wrong, field in (
            ({"since": datetime.now(UTC)}, "since"),
            ({"until": 7}, "until"),
            ({"group_by": ["hour"]}, "group_by"),
            ({"group_by": 3}, "group_by"),
            ({"tenant": 3}, "tenant"),
            ({"since": "yesterday"}, "since"),
        ):
            with pytest.raises(InvalidArgument) as caught:
                await client.usage(**wrong)  # type: ignore[arg-type]
            assert caught.value.violations[0].field == field


async def run(capsys: pytest.CaptureFixture[str], app: App, *words: str, code: int = 0) -> str:
    """What the command prints."""
    since = ("--since", str(today() - timedelta(days=1)))
    assert await asyncio.to_thread(main, ["usage", *since, *words, "--address", app.address]) == code
    said = capsys.readouterr()
    return said.out if not code else said.err


async def test_the_command_prints_a_table_csv_and_json(used: App, capsys: pytest.CaptureFixture[str]) -> None:
    lines = (await run(capsys, used, "--by", "adapter")).splitlines()
    heading, *rows, total = [line.split() for line in lines]
    assert heading == ["ADAPTER", "REQUESTS", "INPUT", "CACHED", "OUTPUT", "TRAINED", "ADAPTER", "HOURS"]
    assert {row[0]: row[1] for row in rows} == {"base": "3", "acme": "2"}
    assert total[:2] == ["total", "5"]

    of_csv = list(csv.DictReader(io.StringIO(await run(capsys, used, "--csv"))))
    assert list(of_csv[0])[:3] == ["day", "tenant", "adapter"]
    assert {(row["tenant"], row["adapter"]): row["requests"] for row in of_csv if row["requests"] != "0"} == {
        ("default", "base"): "3",
        ("default", "acme"): "2",
    }
    (row,) = json.loads(await run(capsys, used, "--json", "--by", "tenant", "--by", "method", "--adapter", "base"))[:1]
    assert (row["tenant"], row["method"], row["requests"]) == ("default", "generate", 2)
    assert "day" not in row
    assert await run(capsys, used, "--tenant", "nobody") == "no usage in this time\n"
    assert "must be a day of UTC" in await run(capsys, used, "--until", "tomorrow", code=1)
    assert "give one of the two" in await run(capsys, used, "--csv", "--json", code=2)


async def test_a_clean_stop_writes_what_waits(used: App) -> None:
    await used.stop()
    store = Store.open(used.settings.state_dir)
    query = UsageQuery(
        since=today() - timedelta(days=1), until=today() + timedelta(days=1), group_by=(Dimension.TENANT,)
    )
    ((row,), _) = store.usage.read(query, 10)
    assert (row.tenant, row.requests, row.output_tokens) == ("default", 5, 6)
    store.close()
