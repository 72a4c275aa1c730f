"""A caller of ``loramux.v1`` over HTTP, used as one over gRPC is."""

from __future__ import annotations

import base64
import io
import json
import zipfile
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx2
from google.protobuf.descriptor_pool import Default
from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc import status_pb2

from loramux.v1 import common_pb2
from loramux_server.config import Address
from loramux_server.core.errors import Code
from loramux_server.http.server import HttpServer
from loramux_server.services.common.context import Context

from .tenants import Caller, World, open_world

JSON = "application/json"


class JsonRefused(Exception):
    """An answer that is an error: the status of HTTP, Connect's body, the headers."""

    def __init__(self, answer: httpx2.Response) -> None:
        self.http, self.body = answer.status_code, answer.json()
        changing = ("date", "content-length")
        self.headers = sorted((key, value) for key, value in answer.headers.items() if key not in changing)
        super().__init__(self.http, self.body)

    @property
    def code(self) -> str:
        """The name of gRPC's code."""
        return Code({"canceled": "cancelled"}.get(self.body["code"], self.body["code"])).name

    def status(self) -> status_pb2.Status:
        """The error as gRPC has it, but for its code."""
        made = status_pb2.Status(message=self.body["message"])
        for detail in self.body["details"]:
            value = base64.b64decode(detail["value"] + "=" * (-len(detail["value"]) % 4))
            kind = GetMessageClass(Default().FindMessageTypeByName(detail["type"]))
            assert ParseDict(detail["debug"], kind()) == kind.FromString(value)
            made.details.add(type_url=f"type.googleapis.com/{detail['type']}", value=value)
        return made


@dataclass
class JsonCaller(Caller):
    """Sends JSON and forms to the HTTP door. ``channel`` is not used."""

    http: httpx2.AsyncClient | None = None

    async def call(self, method: str, request: Message | list[Message], *, first: int | None = None) -> list[Message]:
        service, _, name = method.partition("/")
        found: Any = Default().FindServiceByName(f"loramux.v1.{service}")
        descriptor = found.methods_by_name[name]
        kind = GetMessageClass(descriptor.output_type)
        assert self.http is not None
        async with self.http.stream(
            "POST",
            f"/loramux.v1.{method}",
            headers={"authorization": self.name, "x-request-id": "the-same"},
            **(form_of(request) if isinstance(request, list) else {"json": MessageToDict(request)}),
        ) as answer:
            if answer.status_code != 200:
                await answer.aread()
                raise JsonRefused(answer)
            if answer.headers["content-type"] == "application/zip":
                return responses_of(await answer.aread(), kind)
            if descriptor.server_streaming:
                return await events_of(answer, kind, first)
            return [ParseDict(json.loads(await answer.aread()), kind())]


@asynccontextmanager
async def open_json_world(context: Context) -> AsyncIterator[World]:
    """As ``open_world``, with callers that use the HTTP door."""
    async with open_world(context) as world:
        server = HttpServer(world.availability, world.calls, Address("127.0.0.1", 0))
        await server.start()
        await server.set_serving(True)
        try:
            async with httpx2.AsyncClient(base_url=f"http://{server.address}", timeout=30) as client:
                world.make = lambda name, channel: JsonCaller(name, channel, http=client)
                yield world
        finally:
            await server.drain(0)
            await server.stop()


def form_of(requests: Iterable[Any]) -> dict[str, Any]:
    """The messages of an upload as a form."""
    header, *chunks = requests
    named: dict[str, bytes] = {}
    for message in chunks:
        chunk = message.chunk
        name, data = ("rows.jsonl", chunk) if isinstance(chunk, bytes) else (chunk.name, chunk.data)
        named[name] = named.get(name, b"") + data
    parts: list[tuple[str, Any]] = [("header", (None, json.dumps(MessageToDict(header.header)), JSON))]
    return {"files": [*parts, *(("file", (name, data)) for name, data in named.items())]}


def responses_of(archive: bytes, kind: Any) -> list[Message]:
    """The files of an archive as messages of a download; the header is not in it."""
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        assert opened.testzip() is None
        return [kind(chunk=common_pb2.FileChunk(name=name, data=opened.read(name))) for name in opened.namelist()]


async def events_of(answer: httpx2.Response, kind: type[Message], first: int | None = None) -> list[Message]:
    """The messages of a stream of events; all of them, or the ``first`` ones."""
    found: list[Message] = []
    async for line in answer.aiter_lines():
        if not line:
            continue
        data = json.loads(line.removeprefix("data: "))
        assert "error" not in data, data
        found.append(ParseDict(data, kind()))
        if first is not None and len(found) == first:
            break
    return found
