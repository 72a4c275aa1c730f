"""A server with two doors: both start, tell whether they serve, drain and stop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from loramux import AsyncClient
from loramux_server.app.app import App
from loramux_server.app.door import Door
from loramux_server.app.door_limits import http_limits, rpc_limits
from loramux_server.config import Address, Settings
from loramux_server.core.errors import Error
from loramux_server.http.exchanges.limits import Limits
from loramux_server.services.availability import Availability, Readiness
from tests.unit.services.fakes import FakeBackend, engine_info
from tests.unit.services.tiny_tokenizer import write_tokenizer


class LineDoor:
    """Answers each connection with a line: the version of the server, or why it cannot be told."""

    def __init__(self, availability: Availability) -> None:
        self.address = Address("127.0.0.1", 0)
        self.serving: list[bool] = []
        self.drained: list[float] = []
        self._availability = availability
        self._held = asyncio.Event()
        self._server: asyncio.Server | None = None
        self._running: set[asyncio.Task[None]] = set()

    @property
    def running(self) -> int:
        return len(self._running)

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._answer, *self.address)
        self.address = Address("127.0.0.1", self._server.sockets[0].getsockname()[1])

    async def set_serving(self, serving: bool) -> None:
        self.serving.append(serving)

    async def drain(self, timeout: float) -> int:
        self.drained.append(timeout)
        for task in self._running:
            task.cancel()
        return len(self._running)

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._running.add(task)
        try:
            asked = await reader.readline()
            self._availability.open()
            if asked == b"wait\n":
                writer.write(b"waiting\n")
                await self._held.wait()
            writer.write(b"open\n")
        except Error as refused:
            writer.write(f"{refused.reason}\n".encode())
        finally:
            self._running.discard(task)
            writer.close()


async def ask(door: LineDoor, line: bytes) -> bytes:
    reader, writer = await asyncio.open_connection(*door.address)
    writer.write(line)
    answer = await reader.readline()
    if line != b"wait\n":
        writer.close()
    return answer


@pytest.fixture
async def app(tmp_path: Path) -> AsyncIterator[App]:
    tokenizer = write_tokenizer(tmp_path / "tokenizer")
    backend = FakeBackend(engine_info(400, tokenizer_path=str(tokenizer)))
    settings = Settings(
        state_dir=tmp_path / "state", listen="127.0.0.1:0", http_listen="off", metrics_listen="off", drain_timeout=0.01
    )
    app = App(settings, backend)
    yield app
    await app.stop()


async def test_the_app_starts_drains_and_stops_all_doors(app: App) -> None:
    line = LineDoor(app.availability)
    door: Door = line
    app.doors.append(door)
    await app.start()
    assert app.readiness is Readiness.READY
    assert line.serving == [True]
    assert await ask(line, b"hello\n") == b"open\n"
    async with AsyncClient(app.address) as client:
        assert (await client.info()).base_name == "tiny/base"
    assert await ask(line, b"wait\n") == b"waiting\n"
    assert line.running == 1
    await app.drain()
    assert await ask(line, b"hello\n") == b"SHUTTING_DOWN\n"
    assert line.drained == [0.01]
    await app.stop()
    for address in (line.address, app.doors[0].address):
        with pytest.raises(OSError):
            await asyncio.open_connection(*address)


async def test_a_door_that_cannot_listen_stops_the_start(app: App) -> None:
    taken = LineDoor(app.availability)
    await taken.start()
    line = LineDoor(app.availability)
    line.address = taken.address
    app.doors.append(line)
    with pytest.raises(OSError, match="address already in use"):
        await app.start()
    await app.stop()
    await taken.stop()
    with pytest.raises(OSError):
        await asyncio.open_connection(*app.doors[0].address)


def test_settings_reach_the_doors(tmp_path: Path) -> None:
    """Each limit by its own name, so that none is another one's."""
    given = {
        "stall_timeout": 11,
        "grpc_max_message": 3 << 20,
        "grpc_max_metadata": 5000,
        "max_connection_age": 12,
        "grpc_keepalive_time": 13,
        "grpc_keepalive_timeout": 14,
        "http_max_body": 2 << 20,
        "http_max_headers": 6000,
        "http_header_timeout": 15,
        "http_keepalive_timeout": 16,
        "http_max_connections": 17,
    }
    settings = Settings(state_dir=tmp_path, **given)  # type: ignore[arg-type]
    options = dict(rpc_limits(settings).options())
    assert options["grpc.max_receive_message_length"] == 3 << 20
    assert options["grpc.max_metadata_size"] == 5000
    assert options["grpc.absolute_max_metadata_size"] == 10_000
    ages = ("max_connection_age_ms", "keepalive_time_ms", "keepalive_timeout_ms")
    assert [options[f"grpc.{name}"] for name in ages] == [12_000, 13_000, 14_000]
    assert rpc_limits(settings).stall_timeout == 11
    assert http_limits(settings) == Limits(11, 2 << 20, 6000, 15, 16, 17)
