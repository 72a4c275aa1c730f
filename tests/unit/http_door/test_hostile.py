"""Hostile bytes, slow clients and crowds at the HTTP door: each gets its answer, and others notice nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from loramux_server.config import Address
from loramux_server.http.exchanges.limits import Limits
from loramux_server.http.server import HttpServer

from .conftest import Http
from .hostile import BODY, CASES, get, post, statuses, talk


@asynccontextmanager
async def strict(http: Http, limits: Limits) -> AsyncIterator[Address]:
    """A door of its own before the same services."""
    server = HttpServer(http.availability, http.server.calls, Address("127.0.0.1", 0), limits=limits)
    await server.start()
    try:
        yield server.address
    finally:
        await server.stop()


async def test_hostile_bytes(http: Http, caplog: pytest.LogCaptureFixture) -> None:
    """Every one of them, one after the other; none leaves a line in the log."""
    http.answers("x")
    for name, case in CASES.items():
        got = await talk(*http.server.address, case.sent, answers=len(case.statuses), ends=case.ends)
        assert tuple(got) == case.statuses, name
        assert (await http.raw.get("/v1/models")).status_code == 200
    assert [record.getMessage() for record in caplog.records if record.name.startswith(("uvicorn", "asyncio"))] == []


async def test_garbage_after_an_early_answer_ends_the_connection_quietly(
    http: Http, caplog: pytest.LogCaptureFixture
) -> None:
    reader, writer = await asyncio.open_connection(*http.server.address)
    writer.write(b"POST /nothing HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
    assert b"404" in await reader.readline()
    writer.write(b"no chunk\r\n")
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await reader.readexactly(1 << 20)
    writer.close()
    assert caplog.records == []


async def test_requests_that_never_come_hold_no_connection(http: Http) -> None:
    """Silent ones, heads that come a byte at a time, and bodies that go on after their answer."""
    async with strict(http, Limits(head_timeout=0.3)) as address:
        for first, drip in (
            (b"", b""),
            (b"GET /v1/models HTTP/1.1\r\n", b"a: b\r\n"),
            (get(b"/v1/models") + b"GET", b"x"),
            (post(body=b"x" * 100, path=b"/nothing").replace(b": 100", b": 1000000"), b"y"),
        ):
            reader, writer = await asyncio.open_connection(*address)
            writer.write(first)

            async def go_on(writer: asyncio.StreamWriter = writer, drip: bytes = drip) -> None:
                while not writer.is_closing():
                    writer.write(drip)
                    await asyncio.sleep(0.02)

            dripping = asyncio.create_task(go_on())
            try:
                async with asyncio.timeout(20):
                    while await reader.read(1 << 16):
                        pass
            except ConnectionError:
                pass
            dripping.cancel()
            writer.close()
        assert await talk(*address, post(), ends=False) == [200]


async def test_a_body_may_take_longer_than_a_head(http: Http) -> None:
    http.answers("Paris.")
    async with strict(http, Limits(head_timeout=0.1)) as address:
        reader, writer = await asyncio.open_connection(*address)
        writer.write(post()[: -len(BODY)])
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await reader.read(1)
        writer.write(BODY)
        assert b"200" in await reader.readline()
        writer.close()


async def test_a_body_that_trickles_is_given_up(http: Http) -> None:
    async with strict(http, Limits(stall_timeout=0.3)) as address:
        reader, writer = await asyncio.open_connection(*address)
        writer.write(post()[: -len(BODY)])
        came = b""

        async def read() -> None:
            nonlocal came
            while part := await reader.read(1 << 16):
                came += part

        reading = asyncio.create_task(read())
        async with asyncio.timeout(20):
            for byte in BODY * 100:
                writer.write(bytes((byte,)))
                if statuses(came):
                    break
                await asyncio.sleep(0.05)
        writer.close()
        reading.cancel()
        assert statuses(came) == [504]


async def test_connections_are_bounded_and_a_crowd_goes_home(http: Http) -> None:
    async with strict(http, Limits(max_connections=8)) as address:
        crowd = [await asyncio.open_connection(*address) for _ in range(20)]
        assert await talk(*address, post()) == [503]  # and the connection is closed
        assert await talk(*address, get(b"/health/live", b"Connection: close")) == [200]
        for _, writer in crowd:
            writer.transport.abort()
        async with asyncio.timeout(20):
            while await talk(*address, post(b"Connection: close")) != [200]:
                pass
