"""Those who put load on the HTTP door: OpenAI's client, and sockets that are cut in the middle of a request."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import openai
from openai import AsyncOpenAI

from .actors import SLOW_READ, Soak, Tenant, text

CODES = {
    400: "INVALID_ARGUMENT",
    404: "NOT_FOUND",
    409: "ABORTED",
    429: "RESOURCE_EXHAUSTED",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
"""Statuses of HTTP as gRPC calls them; any other is a defect here."""
TYPES = {"rate_limit_error": "RESOURCE_EXHAUSTED", "timeout_error": "DEADLINE_EXCEEDED", "server_error": "UNAVAILABLE"}
"""The same for errors that end a stream, by their type."""


async def asker(soak: Soak, tenant: Tenant, draw: random.Random) -> None:
    """Chats of all kinds: streams read to the end, left early or read slowly, whole answers, bad and broken ones."""
    kinds: dict[str, Callable[[AsyncOpenAI, Tenant, random.Random, Soak], Awaitable[None]]] = {
        "stream": _stream,
        "leave": _leave,
        "slow": _read_slowly,
        "once": _once,
        "file": _file,
        "bad": _bad,
        "foreign": _foreign,
        "half": _half,
    }
    url = f"http://{soak.http_address}/v1"
    async with AsyncOpenAI(base_url=url, api_key=tenant.key, max_retries=0, timeout=60) as client:
        while not soak.stop.is_set():
            (kind,) = draw.choices([*kinds], [30, 15, 2, 25, 5, 8, 8, 8])
            code, said = "OK", ""
            try:
                await kinds[kind](client, tenant, draw, soak)
            except openai.APIError as error:
                code, said = _code(error), str(error)
            also = ("ABORTED",) if kind == "slow" else ()
            soak.ledger.note(f"http {kind}", code, "NOT_FOUND", *also, said=said)
            if code != "OK":
                await soak.pause(draw.uniform(0.05, 0.5))


def _code(error: openai.APIError) -> str:
    if isinstance(error, openai.APITimeoutError):
        return "DEADLINE_EXCEEDED"
    if isinstance(error, openai.APIStatusError):
        return CODES.get(error.status_code, f"HTTP {error.status_code}")
    if error.code == "internal":
        return "INTERNAL"
    return TYPES.get(error.type or "", type(error).__name__)


def _request(tenant: Tenant, draw: random.Random) -> dict[str, Any]:
    held = [f"{name}@{number}" for name, versions in tenant.mine.items() for number in versions]
    model = f"{draw.choice(held)}:{draw.uniform(-1, 1.5):.2f}" if held and draw.random() < 0.7 else "base"
    more: dict[str, Any] = {"n": draw.randint(2, 4)} if draw.random() < 0.2 else {}
    return {
        "model": model,
        "messages": [{"role": "user", "content": text(draw, draw.choice([1, 5, 20]))}],
        "max_tokens": draw.choice([1, 4, 16, 48]),
        "temperature": draw.choice([0.0, 0.7, 1.3]),
        **more,
    }


async def _stream(client: AsyncOpenAI, tenant: Tenant, draw: random.Random, soak: Soak) -> None:
    ends = [
        choice.finish_reason
        async for chunk in await client.chat.completions.create(**_request(tenant, draw), stream=True)
        for choice in chunk.choices
    ]
    if not any(ends):
        soak.ledger.violate("a stream over HTTP ended without a reason")


async def _leave(client: AsyncOpenAI, tenant: Tenant, draw: random.Random, soak: Soak) -> None:
    left = draw.randint(0, 5)
    stream = await client.chat.completions.create(**{**_request(tenant, draw), "max_tokens": 100}, stream=True)
    async with stream:
        async for _ in stream:
            left -= 1
            if left < 0:
                return


async def _read_slowly(client: AsyncOpenAI, tenant: Tenant, draw: random.Random, soak: Soak) -> None:
    asked = {**_request(tenant, draw), "n": 4, "max_tokens": 100, "timeout": 20}
    stream = await client.chat.completions.create(**asked, stream=True)
    async with stream:
        async for _ in stream:
            await soak.pause(SLOW_READ)
            if soak.stop.is_set():
                return


async def _once(client: AsyncOpenAI, tenant: Tenant, draw: random.Random, soak: Soak) -> None:
    await client.chat.completions.create(**_request(tenant, draw))


async def _file(client: AsyncOpenAI, tenant: Tenant, draw: random.Random, soak: Soak) -> None:
    """A file of rows, which is a dataset like one that came over gRPC."""
    row = f'{{"prompt": "{text(draw, 4)}", "completion": " {text(draw, 3)}"}}\n'
    made = await client.files.create(file=("rows.jsonl", row.encode() * 24), purpose="fine-tune")
    soak.ledger.datasets.setdefault(tenant.name, set()).add(made.id.removeprefix("file-"))


async def _bad(client: AsyncOpenAI, tenant: Tenant, draw: random.Random, soak: Soak) -> None:
    wrong: Any = draw.choice([{"temperature": -1}, {"max_tokens": 0}, {"n": 1000}, {"top_p": 2}])
    try:
        await client.chat.completions.create(model="base", messages=[{"role": "user", "content": "x"}], **wrong)
    except openai.BadRequestError:
        return
    soak.ledger.violate(f"{wrong} was taken over HTTP")


async def _foreign(client: AsyncOpenAI, tenant: Tenant, draw: random.Random, soak: Soak) -> None:
    """Another tenant's adapter is none."""
    other = draw.choice([t for t in soak.tenants if t is not tenant])
    model = draw.choice([*other.mine, "nobody"])
    try:
        await client.chat.completions.create(model=model, messages=[{"role": "user", "content": "x"}], max_tokens=1)
    except openai.NotFoundError:
        return
    soak.ledger.violate(f"{tenant.name} was answered with {other.name}'s adapter over HTTP")


async def _half(client: AsyncOpenAI, tenant: Tenant, draw: random.Random, soak: Soak) -> None:
    """A request whose connection is cut at any byte."""
    host, _, port = soak.http_address.rpartition(":")
    body = b'{"model": "base", "prompt": "the quick brown fox", "max_tokens": 20, "stream": true}'
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {tenant.key}\r\n"
    whole = f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
    with suppress(OSError):
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(whole[: draw.randint(1, len(whole))])
        await writer.drain()
        await soak.pause(draw.uniform(0, 0.2))
        writer.transport.abort()
