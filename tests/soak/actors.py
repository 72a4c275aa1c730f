"""Those who put load on the server: each is one task with a client of its own, until ``stop`` is set."""

from __future__ import annotations

import asyncio
import random
import shutil
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import loramux
from loramux import AsyncClient
from loramux_server.core.backend import EngineInfo
from tests.unit.services.adapter_files import write_adapter

from .ledger import Ledger

WORDS = "the quick brown fox jumps over the lazy dog while seven wizards quietly brew a better potion"
SLOW_READ = 0.3
"""Seconds between two reads of a reader that cannot keep up."""


@dataclass
class Tenant:
    """One tenant with a key that lasts."""

    name: str
    key: str
    mine: dict[str, dict[int, str]] = field(default_factory=dict)
    """Its adapters as acknowledged."""


@dataclass
class Soak:
    """What all actors share."""

    address: str
    http_address: str
    info: EngineInfo
    tenants: list[Tenant]
    ledger: Ledger
    folder: Path
    stop: asyncio.Event = field(default_factory=asyncio.Event)

    def client(self, tenant: Tenant) -> AsyncClient:
        return AsyncClient(self.address, api_key=tenant.key, timeout=60)

    async def pause(self, seconds: float) -> None:
        """Wait, but not longer than the run lasts."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.stop.wait()


def text(draw: random.Random, words: int) -> str:
    return " ".join(draw.choices(WORDS.split(), k=words))


async def asker(soak: Soak, tenant: Tenant, draw: random.Random) -> None:
    """Requests of all kinds: streams read to the end, left early or read slowly, whole answers, scores, bad ones."""
    kinds: dict[str, Callable[[AsyncClient, Tenant, random.Random, Soak], Awaitable[None]]] = {
        "stream": _stream,
        "leave": _leave,
        "slow": _read_slowly,
        "once": _once,
        "score": _score,
        "bad": _bad,
        "foreign": _foreign,
    }
    async with soak.client(tenant) as client:
        while not soak.stop.is_set():
            (kind,) = draw.choices([*kinds], [30, 15, 2, 25, 10, 10, 8])
            code, said = "OK", ""
            try:
                await kinds[kind](client, tenant, draw, soak)
            except loramux.LoramuxError as error:
                code, said = error.code, str(error)
            # Its own adapters come and go; who reads slowly is given up.
            soak.ledger.note(kind, code, "NOT_FOUND", *(("ABORTED",) if kind == "slow" else ()), said=said)
            if code != "OK":
                await soak.pause(draw.uniform(0.05, 0.5))


def _request(tenant: Tenant, draw: random.Random) -> dict[str, Any]:
    held = [(name, number) for name, versions in tenant.mine.items() for number in versions]
    # An adapter may be in a stack once, whichever version.
    chosen = dict(draw.sample(held, min(len(held), draw.randint(0, 3))))
    stack = {f"{name}@{number}": round(draw.uniform(-1, 1.5), 2) for name, number in chosen.items()}
    more: dict[str, Any] = {"max_tokens": draw.choice([1, 4, 16, 48]), "temperature": draw.choice([0.0, 0.7, 1.3])}
    if draw.random() < 0.2:
        more["n"] = draw.randint(2, 4)
    if draw.random() < 0.2:
        more["logprobs"] = draw.randint(0, 5)
    if draw.random() < 0.1:
        more["response_format"] = {"type": "json_object"}
    if draw.random() < 0.2:
        more["timeout"] = draw.choice([0.02, 0.2, 2.0])
    return {"prompt": text(draw, draw.choice([1, 5, 40])), "adapters": stack or None, **more}


async def _stream(client: AsyncClient, tenant: Tenant, draw: random.Random, soak: Soak) -> None:
    async for _ in client.stream(**_request(tenant, draw)):
        pass


async def _leave(client: AsyncClient, tenant: Tenant, draw: random.Random, soak: Soak) -> None:
    left = draw.randint(0, 5)
    async with client.stream(**{**_request(tenant, draw), "max_tokens": 100}) as stream:
        async for _ in stream:
            left -= 1
            if left < 0:
                return


async def _read_slowly(client: AsyncClient, tenant: Tenant, draw: random.Random, soak: Soak) -> None:
    async with client.stream(**{**_request(tenant, draw), "n": 4, "max_tokens": 100, "timeout": 20}) as stream:
        async for _ in stream:
            await soak.pause(SLOW_READ)
            if soak.stop.is_set():
                return


async def _once(client: AsyncClient, tenant: Tenant, draw: random.Random, soak: Soak) -> None:
    await client.generate(**_request(tenant, draw))


async def _score(client: AsyncClient, tenant: Tenant, draw: random.Random, soak: Soak) -> None:
    asked = _request(tenant, draw)
    await client.score(asked["prompt"], text(draw, 4), adapters=asked["adapters"])


async def _bad(client: AsyncClient, tenant: Tenant, draw: random.Random, soak: Soak) -> None:
    wrong = draw.choice(
        [{"temperature": -1.0}, {"max_tokens": 0}, {"n": 1000}, {"top_p": 2.0}, {"logit_bias": {10**6: 1.0}}]
    )
    try:
        await client.generate("x", **wrong)
    except loramux.InvalidArgument:
        return
    soak.ledger.violate(f"{wrong} was taken")


async def _foreign(client: AsyncClient, tenant: Tenant, draw: random.Random, soak: Soak) -> None:
    """Another tenant's adapter is none."""
    other = draw.choice([t for t in soak.tenants if t is not tenant])
    name = draw.choice([*other.mine, "nobody"])
    try:
        await client.generate("x", adapters=[name], max_tokens=1)
    except loramux.NotFound:
        return
    soak.ledger.violate(f"{tenant.name} was answered with {other.name}'s adapter")


async def publisher(soak: Soak, tenant: Tenant, name: str, draw: random.Random) -> None:
    """Uploads, merges and deletes versions of one name that nobody else changes."""
    name = f"{tenant.name}-{name}"
    known = soak.ledger.adapters.setdefault((tenant.name, name), {})
    tenant.mine[name] = known
    async with soak.client(tenant) as client:
        while not soak.stop.is_set():
            code, said = "OK", ""
            kind = "delete" if len(known) > 3 else draw.choice(["upload", "upload", "compose"]) if known else "upload"
            try:
                await _change(soak, client, name, kind, known, draw)
            except loramux.LoramuxError as error:
                code, said = error.code, str(error)
                await _settle(soak, client, name, known)
            soak.ledger.note(kind, code, said=said)
            await soak.pause(draw.uniform(0.1, 1.5))


async def _change(
    soak: Soak, client: AsyncClient, name: str, kind: str, known: dict[int, str], draw: random.Random
) -> None:
    if kind == "delete":
        number = min(known)
        await client.adapters.delete(f"{name}@{number}")
        del known[number]
    elif kind == "compose":
        made = await client.adapters.compose(name, {f"{name}@{max(known)}": draw.uniform(0.1, 2.0)})
        known[made.version] = made.digest
    else:
        folder = soak.folder / f"{name}-{draw.getrandbits(48):x}"
        write_adapter(folder, soak.info, b=draw.uniform(0.1, 1.0))
        try:
            made = await client.adapters.upload(name, folder)
        finally:
            shutil.rmtree(folder)
        known[made.version] = made.digest


async def _settle(soak: Soak, client: AsyncClient, name: str, known: dict[int, str]) -> None:
    """After a change without an answer: all that was acknowledged is there, and at most one change more."""
    while True:
        try:
            found = {v.version: v.digest for v in (await client.adapters.get(name)).versions}
        except loramux.NotFound:
            found = {}
        except loramux.LoramuxError:
            if soak.stop.is_set():
                return
            await soak.pause(0.5)
            continue
        break
    changed = set(found.items()) ^ set(known.items())
    if len(changed) > 1:
        soak.ledger.violate(f"{name} has {found} after a change without an answer; it had {known}")
    known.clear()
    known.update(found)


async def trainer(soak: Soak, tenant: Tenant, draw: random.Random) -> None:
    """Short jobs: some are waited for, some cancelled, some left to themselves."""
    rows = [{"prompt": text(draw, 4), "completion": " " + text(draw, 3)} for _ in range(24)]
    async with soak.client(tenant) as client:
        while not soak.stop.is_set():
            code, said = "OK", ""
            kind = draw.choice(["train", "train", "cancel a job", "leave a job"])
            try:
                data = [*rows, {"prompt": text(draw, 6), "completion": " yes"}]
                dataset = await client.datasets.upload(data)
                soak.ledger.datasets.setdefault(tenant.name, set()).add(dataset.id)
                job = await client.train(f"{tenant.name}-tuned", data, max_steps=draw.randint(2, 6), rank=2)
                soak.ledger.jobs[job.id] = tenant.name
                if kind == "train":
                    await job.wait(timeout=120)
                elif kind == "cancel a job":
                    await soak.pause(draw.uniform(0, 3))
                    await job.cancel()
            except loramux.LoramuxError as error:
                code, said = error.code, str(error)
            soak.ledger.note(kind, code, "FAILED_PRECONDITION", "ABORTED", said=said)
            await soak.pause(draw.uniform(0.5, 4))
