"""One HTTP request and its answer, with the bounds that a client cannot argue with."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from itertools import islice
from typing import Any, BinaryIO

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message, Receive, Scope, Send

from ...core.call import sending
from ...core.errors import Code, Error, invalid_field
from ...services.common.calls import request_id
from .errors import OPENAI, REQUEST_ID, Convention
from .limits import MIN_RATE, Limits

FILE_PIECE = 256 << 10
"""Bytes of a file that are read and sent at once."""
JSON_TYPE = "application/json"
MOST_VALUES = 100_000
"""Values in one body, over all its lists and objects."""
MOST_DIGITS = 300
"""Of a whole number: those with more are no floats either, and to read each takes the square of its length."""
_UP_TO_A_VALUE = re.compile(rb'[^",\[{]*+(?:"[^"\\]*+(?:\\.[^"\\]*+)*+"?[^",\[{]*+)*+(?:([,\[{])|\Z)', re.DOTALL)
"""Bytes, and whole texts among them, before the next value of a list or an object; each byte is looked at once."""
EVENTS = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache"}
"""Headers of a stream of server-sent events."""


class Exchange:
    """A request and the answer to it. Headers of the answer may be added to ``headers`` until it has ``started``.

    ``sends_events``: the answer that has started is a stream of events. ``disconnected``: the client has left while
    its answer was made. ``error_event`` makes the last event of a stream that an error ends. ``late_headers`` gives
    headers that are true only once the answer starts.
    """

    def __init__(
        self, scope: Scope, receive: Receive, send: Send, limits: Limits, convention: Convention = OPENAI
    ) -> None:
        self.request = Request(scope, receive)
        self.request_id = request_id(self.request.headers.get(REQUEST_ID, ""))
        self.convention = convention
        self.headers: dict[str, str] = dict.fromkeys(convention.id_headers, self.request_id)
        self.status: int | None = None
        self.sends_events = False
        self.disconnected = False
        self.error_event: Callable[[Error], Any] = self.error_body
        self.late_headers: Callable[[], Mapping[str, str]] = dict
        self._names_events = False
        self._receive, self._send, self._limits = receive, send, limits

    @property
    def started(self) -> bool:
        """Whether the answer has begun: its ``status`` is known, and its headers are on their way."""
        return self.status is not None

    @property
    def request_headers(self) -> Headers:
        return self.request.headers

    @property
    def peer(self) -> str:
        """Address of the client; empty: unknown."""
        client = self.request.client
        return f"{client.host}:{client.port}" if client is not None and client.host else ""

    @property
    def announced(self) -> int:
        """Bytes that the body has by its header; 0: unknown."""
        length = self.request.headers.get("content-length", "0")
        return int(length) if length.isdecimal() else 0

    @property
    def path_params(self) -> dict[str, Any]:
        return self.request.path_params

    def error_body(self, error: Error) -> Any:
        """The answer of an error."""
        return self.convention.error_object(error, self.request_id)

    async def json(self) -> Any:
        """The body as JSON. Raises INVALID_ARGUMENT for what is none, RESOURCE_EXHAUSTED for one that is too large."""
        kind = self.request.headers.get("content-type", JSON_TYPE).partition(";")[0].strip().lower()
        if kind != JSON_TYPE:
            raise invalid_field("content-type", f"is {kind[:80]!r}; send {JSON_TYPE}")
        return json_of(await self._body())

    async def _body(self) -> bytes:
        async with aclosing(self.pieces(self._limits.max_body)) as pieces:
            return b"".join([piece async for piece in pieces])

    async def pieces(self, most: int) -> AsyncGenerator[bytes]:
        """The body as it comes.

        Raises RESOURCE_EXHAUSTED beyond ``most`` bytes, DEADLINE_EXCEEDED when it stalls or only trickles.
        """
        if self.announced > most:
            raise _too_large(most)
        size, started = 0, time.monotonic()
        async with aclosing(self.request.stream()) as stream:
            while True:
                late = started + size / MIN_RATE - time.monotonic()
                try:
                    async with asyncio.timeout(self._limits.stall_timeout + min(late, 0.0)):
                        part = await anext(stream, None)
                except ClientDisconnect:
                    self.disconnected = True
                    raise
                except TimeoutError:
                    what = "the body stopped coming; send the request again"
                    raise Error(Code.DEADLINE_EXCEEDED, what, reason="UPLOAD_STALLED") from None
                if part is None:
                    return
                size += len(part)
                if size > most:
                    raise _too_large(most)
                yield part

    async def send_json(self, value: Any, status: int = 200) -> None:
        """The whole answer."""
        await self.send_bytes(json.dumps(value, ensure_ascii=False, allow_nan=False).encode(), JSON_TYPE, status)

    async def send_bytes(self, body: bytes, content_type: str, status: int = 200) -> None:
        """The whole answer, of any kind."""
        await self._start(status, {"content-type": content_type, "content-length": str(len(body))})
        await self._write({"type": "http.response.body", "body": body})

    async def send_nothing(self, status: int) -> None:
        """An answer that has no body."""
        await self._start(status, {})
        await self._write({"type": "http.response.body", "body": b""})

    async def send_file(self, file: BinaryIO, size: int, content_type: str) -> None:
        """A whole file of ``size`` bytes, a piece at a time."""
        await self._start(200, {"content-type": content_type, "content-length": str(size)})
        while piece := await asyncio.to_thread(file.read, FILE_PIECE):
            await self._write({"type": "http.response.body", "body": piece, "more_body": True})
        await self.end()

    async def send_pieces(self, pieces: AsyncGenerator[bytes], content_type: str) -> None:
        """A body whose size is not known before it has ended, started by the first piece as ``send_events`` is."""
        async with aclosing(pieces):
            async for piece in pieces:
                if not self.started:
                    await self._start(200, {"content-type": content_type})
                await self._write({"type": "http.response.body", "body": piece, "more_body": True})
        await self.end()

    async def send_events(self, events: AsyncGenerator[Any], *, named: bool = False) -> None:
        """Server-sent events, started by the first one: what fails before it is answered with a status of its own.

        ``named``: every event has its ``type`` as its name too.
        """
        self._names_events = named
        async with aclosing(events):
            async for event in events:
                if not self.started:
                    self.sends_events = True
                    await self._start(200, EVENTS)
                await self.send_event(event)
        if not self.started:
            await self._start(200, EVENTS)
        await self.end()

    async def send_event(self, event: Any) -> None:
        """One event: JSON, or a text as it is."""
        data = event if isinstance(event, str) else json.dumps(event, ensure_ascii=False, allow_nan=False)
        name = f"event: {event['type']}\n" if self._names_events else ""
        await self._write({"type": "http.response.body", "body": f"{name}data: {data}\n\n".encode(), "more_body": True})

    async def end(self) -> None:
        """Nothing more comes."""
        await self._write({"type": "http.response.body", "body": b""})

    async def _start(self, status: int, headers: dict[str, str]) -> None:
        pairs = [
            (k.encode("latin-1"), v.encode("latin-1"))
            for k, v in {**self.late_headers(), **self.headers, **headers}.items()
        ]
        self.status = status
        await self._write({"type": "http.response.start", "status": status, "headers": pairs})

    async def _write(self, message: Message) -> None:
        try:
            with sending():
                async with asyncio.timeout(self._limits.stall_timeout):
                    await self._send(message)
        except TimeoutError:
            raise Error(
                Code.ABORTED, f"nothing was read for {self._limits.stall_timeout:g} s", reason="SLOW_READER"
            ) from None

    @asynccontextmanager
    async def ended_by_disconnect(self) -> AsyncIterator[None]:
        """Cancel the block when the client leaves. For use once the body is read."""
        task = asyncio.current_task()
        assert task is not None

        async def watch() -> None:
            while (await self._receive())["type"] != "http.disconnect":
                pass
            self.disconnected = True
            task.cancel()

        watching = asyncio.create_task(watch())
        try:
            yield
        finally:
            watching.cancel()
            with suppress(asyncio.CancelledError):
                await watching


def json_of(body: bytes) -> Any:
    """The JSON in ``body``, which is UTF-8. Raises INVALID_ARGUMENT for what is none, and for more than any asks for.

    Values are counted before any is made: to make millions of them would hold everybody up for seconds.
    """
    found = islice(_UP_TO_A_VALUE.finditer(body), MOST_VALUES + 1)
    if sum(1 for each in found if each.lastindex) > MOST_VALUES:
        raise invalid_field("", f"the body has more than {MOST_VALUES} values; send less at once")
    try:
        # Decoded here: the parser would take other encodings too, and halves of characters in all of them.
        value = json.loads(body.decode("utf-8-sig"), parse_constant=_no_constant, parse_int=_integer)
        if b"\\ud" in body or b"\\uD" in body:  # halves of characters can be written in JSON, and stored nowhere
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except (ValueError, RecursionError):
        raise invalid_field("", "the body is not JSON", reason="MALFORMED") from None


def _integer(digits: str) -> int:
    if len(digits.lstrip("-")) > MOST_DIGITS:
        raise invalid_field("", f"the body has a whole number of more than {MOST_DIGITS} digits")
    return int(digits)


def _too_large(most: int) -> Error:
    return Error(Code.RESOURCE_EXHAUSTED, f"the body is larger than {most} bytes", reason="UPLOAD_TOO_LARGE")


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON")
