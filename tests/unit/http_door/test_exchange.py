"""What is written to the client, seen as ASGI messages."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from loramux_server.core.errors import Code, Error
from loramux_server.http.exchanges.endpoint import send_error
from loramux_server.http.exchanges.exchange import Exchange
from loramux_server.http.exchanges.limits import Limits


async def test_named_events_have_their_type_as_name_the_last_error_too() -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        raise AssertionError("nothing is read")

    async def events() -> AsyncGenerator[Any]:
        yield {"type": "made.piece", "delta": "ü"}

    exchange = Exchange({"type": "http", "headers": []}, receive, send, Limits())
    exchange.error_event = lambda error: {"type": "made.failed", "code": error.code.name}
    await exchange.send_events(events(), named=True)
    await send_error(exchange, Error(Code.UNAVAILABLE, "the engine is starting again"))
    body = b"".join(message.get("body", b"") for message in sent).decode()
    assert body == (
        'event: made.piece\ndata: {"type": "made.piece", "delta": "ü"}\n\n'
        'event: made.failed\ndata: {"type": "made.failed", "code": "UNAVAILABLE"}\n\n'
    )
