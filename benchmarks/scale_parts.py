"""What is measured of a registry at scale, part by part, all of it over gRPC and from the server's own metrics."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import grpc

from loramux import AsyncClient
from loramux.v1 import adapters_pb2 as pb
from loramux.v1.adapters_pb2_grpc import AdapterServiceStub

from . import scrape
from .page_cache import cached_share, drop
from .processes import peak_bytes
from .samples import Figures, Sample, summarise
from .systems.children import ended, free_port, start, wait_until
from .systems.remote import GrpcSystem
from .traffic import asks, turns, zipf
from .workloads import Ask

PAGE = 100
POLL_SECONDS = 0.02
WARM_TOKENS = 2


@dataclass(frozen=True, slots=True)
class Listing:
    """Seconds of each call, and the front's largest memory after them."""

    listed: int
    first: tuple[float, ...]
    """Pages, the first time after the start."""
    again: tuple[float, ...]
    """The same pages once more."""
    get: tuple[float, ...]
    front_bytes: int


@dataclass(frozen=True, slots=True)
class Compared:
    """The same requests over few adapters and over many."""

    few: Figures
    many: Figures
    hits: dict[str, float]
    """Tier -> share of the adapters of the many that were there when they were asked for."""
    loads: dict[str, tuple[int, float]]
    """Tier -> loads during the many, and their seconds."""


@dataclass(frozen=True, slots=True)
class ColdLoads:
    """One load after the other on an idle server, seconds of each."""

    host: tuple[float, ...]
    """The engine's: files read and checked."""
    device: tuple[float, ...]
    """The engine's: copied to where a step reads it."""
    added: tuple[float, ...]
    """The client's: time to the first token, less that of a request to the same adapter right after."""
    cached: float
    """Share of the bytes that were in the page cache when the load began."""

    @property
    def whole(self) -> tuple[float, ...]:
        """Both tiers."""
        return tuple(h + d for h, d in zip(self.host, self.device, strict=True))


class Server:
    """A server of ours and its clients."""

    def __init__(self, client: AsyncClient, stub: Any, process: subprocess.Popen[bytes], metrics: str) -> None:
        self.client, self.stub, self.metrics = client, stub, metrics
        self._process = process
        self.ready_seconds = 0.0

    @property
    def front_bytes(self) -> int:
        """Largest memory so far of the process that answers, without the engine's."""
        return peak_bytes([self._process.pid])

    async def run(self, names: Sequence[str], requests: Sequence[Ask], at_once: int) -> tuple[list[Sample], float]:
        """Answer all, ``at_once`` at any time: samples, and the seconds that it took."""
        return await GrpcSystem(self.client, self._process, names).run(requests, at_once)


@asynccontextmanager
async def open_server(flags: dict[str, str], output: IO[bytes]) -> AsyncIterator[Server]:
    """Start a server with these flags and wait until it serves; end it."""
    address, metrics = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    every = {**flags, "--listen": address, "--http-listen": "off", "--metrics-listen": metrics}
    command = [sys.executable, "-m", "loramux_server", "serve", *(part for pair in every.items() for part in pair)]
    begin = time.perf_counter()
    process = start(command, {"HF_HUB_OFFLINE": "1"}, output)
    try:
        async with AsyncClient(address) as client, grpc.aio.insecure_channel(address) as channel:
            server = Server(client, AdapterServiceStub(channel), process, f"http://{metrics}/metrics")

            async def ready() -> bool:
                return await client.health(timeout=1.0) == "SERVING"

            await wait_until(ready, process, POLL_SECONDS)
            server.ready_seconds = time.perf_counter() - begin
            yield server
    finally:
        ended(process)


async def listing(server: Server, names: Sequence[str], gets: int, seed: int = 0) -> Listing:
    """Page through everything twice, then ask for ``gets`` adapters by name."""
    listed, first = await _pages(server.stub)
    _, again = await _pages(server.stub)
    seconds = []
    for name in random.Random(seed).choices(names, k=gets) if names else ():
        begin = time.perf_counter()
        await server.stub.GetAdapter(pb.GetAdapterRequest(adapter=name))
        seconds.append(time.perf_counter() - begin)
    return Listing(listed, tuple(first), tuple(again), tuple(seconds), server.front_bytes)


async def _pages(stub: Any) -> tuple[int, list[float]]:
    token, listed, seconds = "", 0, []
    while True:
        begin = time.perf_counter()
        page = await stub.ListAdapters(pb.ListAdaptersRequest(page_size=PAGE, page_token=token))
        seconds.append(time.perf_counter() - begin)
        listed, token = listed + len(page.adapters), page.next_page_token
        if not token:
            return listed, seconds


async def popular_and_rare(
    server: Server, names: Sequence[str], *, few: int, requests: int, tokens: int, at_once: int, rounds: int
) -> Compared:
    """Zipf traffic over all names beside the same requests over the first ``few``, by turns."""
    many = len(names)
    await server.run(names, asks(zipf(many, requests, seed=rounds), WARM_TOKENS, "warm"), at_once)
    pairs = [(turns(few, requests), zipf(many, requests, seed=round)) for round in range(rounds)]
    return await _compare(server, names, pairs, tokens, at_once, "popular")


async def cliff(
    server: Server, names: Sequence[str], *, slots: int, requests: int, tokens: int, rounds: int
) -> Compared:
    """As many adapters as there are slots, then twice as many, each in its turn: what LRU finds hardest.

    As many requests at once as there are slots, so that those in use fill the device.
    """
    await server.run(names, asks(turns(2 * slots, 2 * slots), WARM_TOKENS, "cliff warm"), slots)
    pairs = [(turns(slots, requests), turns(2 * slots, requests))] * rounds
    return await _compare(server, names, pairs, tokens, slots, "cliff")


async def _compare(
    server: Server,
    names: Sequence[str],
    pairs: Sequence[tuple[list[int], list[int]]],
    tokens: int,
    at_once: int,
    mark: str,
) -> Compared:
    samples: tuple[list[Sample], list[Sample]] = ([], [])
    seconds, added = [0.0, 0.0], dict[str, float]()
    for round, pair in enumerate(pairs):
        for side, adapters in enumerate(pair):
            if side == 0:  # the few must be there: what came between has pushed them out
                await server.run(names, asks(sorted(set(adapters)), WARM_TOKENS, f"{mark} back {round}"), at_once)
            before = await scrape.read(server.metrics)
            found, took = await server.run(names, asks(adapters, tokens, f"{mark} {round} {side}"), at_once)
            samples[side].extend(found)
            seconds[side] += took
            if side:
                for key, value in scrape.since(before, await scrape.read(server.metrics)).items():
                    added[key] = added.get(key, 0.0) + value
    return Compared(
        summarise(samples[0], seconds[0]),
        summarise(samples[1], seconds[1]),
        scrape.hit_shares(added),
        {tier: scrape.loads(added, tier) for tier in ("host", "device")},
    )


async def cold_loads(
    server: Server, names: Sequence[str], adapters: Sequence[int], folders: Sequence[str], tokens: int, mark: str
) -> ColdLoads:
    """Ask adapters that were never asked, each twice; the first is not counted.

    ``folders`` has the files of each adapter, which are dropped from the page cache before.
    """
    host, device, added, cached = [], [], [], []
    for i, adapter in enumerate(adapters):
        folder = Path(folders[adapter])
        drop(folder)
        cached.append(cached_share(folder))
        before = await scrape.read(server.metrics)
        (cold,), _ = await server.run(names, asks([adapter], tokens, f"{mark} {i} cold"), 1)
        change = scrape.since(before, await scrape.read(server.metrics))
        (warm,), _ = await server.run(names, asks([adapter], tokens, f"{mark} {i} warm"), 1)
        (reads, read), (copies, copied) = (scrape.loads(change, tier) for tier in ("host", "device"))
        if (reads, copies) != (1, 1):
            raise RuntimeError(f"{names[adapter]}: {reads} reads and {copies} copies for one cold request")
        host.append(read)
        device.append(copied)
        added.append(cold.first - warm.first)
    return ColdLoads(tuple(host[1:]), tuple(device[1:]), tuple(added[1:]), sum(cached) / len(cached))
