"""What HTTP costs beside gRPC: the same streams through both doors of one server, and connections that wait.

    make bench-front                                    # three rounds, four minutes
    make bench-front BENCH_ARGS=--quick                 # to see that it runs

A round is a stretch of streams over gRPC and one over HTTP (server-sent events of plain completions), so that a machine
whose speed drifts is seen by both alike. Tokens are those that the server counts; its front's processor time per token
does not depend on the clients, which run here, on the same cores. Then connections are opened that follow the events of
a training job that is paused: the memory of the front before and after, and its processor time while nothing happens.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import subprocess
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path
from typing import Protocol

import httpx2
from rich.table import Table

from loramux import AsyncClient
from loramux_server.host.resources import usable_cpus

from .goals import Goal, as_json
from .load import own_server
from .machine import describe, sentence
from .processes import tree
from .samples import Figures, Sample, Stopwatch, summarise
from .serving import RESULTS, ROOT, console, prepare, save
from .streams import first_lengths, kept
from .systems.children import free_port
from .workloads import prompt

DOORS = ("gRPC", "HTTP")
PREDICTED = {"tokens/s, HTTP to gRPC": 0.95, "1,000 connections": 45.0}
"""What was expected before it was measured for the first time."""
LONGEST_WARM_UP = 300.0
"""Seconds until each stream has its first token."""
ROWS = b'{"prompt": "Where?", "completion": " Here."}\n' * 16
COUNTER = re.compile(r"^loramux_generated_tokens_total(?:\{[^}]*\})? ([0-9.e+]+)$", re.MULTILINE)


class Door(Protocol):
    """One way to the server."""

    def stream(self, text: str, tokens: int) -> AsyncGenerator[None]:
        """One item for each message of a stream."""
        ...


class GrpcDoor:
    """The client that users have."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def stream(self, text: str, tokens: int) -> AsyncGenerator[None]:
        async with self._client.stream(text, max_tokens=tokens, temperature=0.0, ignore_eos=True) as stream:
            async for _ in stream:
                yield


class HttpDoor:
    """HTTP/1.1 and no more of it than is needed, so that the client costs little; it reads each event's JSON."""

    def __init__(self, address: str) -> None:
        self._host, _, self._port = address.rpartition(":")

    async def stream(self, text: str, tokens: int) -> AsyncGenerator[None]:
        body = {"model": "base", "prompt": text, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
        async for event in self.events("POST", "/v1/completions", json.dumps({**body, "stream": True}).encode()):
            json.loads(event)
            yield

    async def events(self, method: str, path: str, body: bytes = b"") -> AsyncGenerator[bytes]:
        """The data of each event until [DONE]. Raises ValueError for another answer."""
        reader, writer = await asyncio.open_connection(self._host, int(self._port))
        try:
            head = f"{method} {path} HTTP/1.1\r\nhost: {self._host}\r\ncontent-type: application/json\r\n"
            writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
            status = await reader.readline()
            if b" 200 " not in status:
                raise ValueError(status.decode())
            while line := await reader.readline():
                if line.startswith(b"data: "):
                    if line.startswith(b"data: [DONE]"):
                        return
                    yield line.removeprefix(b"data: ")
        finally:
            writer.close()


class Server:
    """What the server says of itself, and what its front takes."""

    def __init__(self, metrics_port: int, front: int) -> None:
        self._url, self._front = f"http://127.0.0.1:{metrics_port}/metrics", front

    async def tokens(self) -> float:
        """Tokens generated so far."""
        async with httpx2.AsyncClient(timeout=30) as client:
            return sum(float(value) for value in COUNTER.findall((await client.get(self._url)).text))

    def seconds(self) -> float:
        """Processor time of the front."""
        fields = Path(f"/proc/{self._front}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def resident(self) -> int:
        """Bytes of the front's memory."""
        lines = Path(f"/proc/{self._front}/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))


@dataclass(slots=True)
class Stretches:
    """What a door's stretches found."""

    samples: list[Sample] = field(default_factory=list)
    seconds: float = 0.0
    tokens: float = 0.0
    front_seconds: float = 0.0
    rates: list[float] = field(default_factory=list)
    """Tokens/s of each stretch."""


@dataclass(slots=True)
class Waiting:
    """Connections that wait for events."""

    connections: int
    bytes: int
    """Memory of the front that came with them."""
    busy: float
    """Share of a processor that the front takes while nothing happens."""


async def stretch(door: Door, server: Server, streams: int, tokens: int, seconds: float, mark: str) -> Stretches:
    """Streams that never pause, measured once they run."""
    found, numbers = Stretches(), count()
    begun = [asyncio.Event() for _ in range(streams)]
    places = [
        asyncio.create_task(_place(door, numbers, (first, tokens), mark, found.samples, event))
        for first, event in zip(first_lengths(streams, tokens), begun, strict=True)
    ]
    try:
        async with asyncio.timeout(LONGEST_WARM_UP):
            await asyncio.gather(*(event.wait() for event in begun))
        found.samples.clear()
        begin, before, busy = time.perf_counter(), await server.tokens(), server.seconds()
        await asyncio.sleep(seconds)
        after, found.front_seconds = await server.tokens(), server.seconds() - busy
        found.seconds, found.tokens = time.perf_counter() - begin, after - before
    finally:
        for place in places:
            place.cancel()
        results = await asyncio.gather(*places, return_exceptions=True)
    for result in results:
        if isinstance(result, Exception):
            raise result
    found.rates = [found.tokens / found.seconds]
    return found


async def _place(
    door: Door, numbers: Iterator[int], lengths: tuple[int, int], mark: str, samples: list[Sample], begun: asyncio.Event
) -> None:
    length, later = lengths
    while True:
        watch = Stopwatch()
        try:
            async with aclosing(door.stream(prompt(next(numbers), mark), length)) as stream:
                async for _ in stream:
                    watch.tokens((0,))
                    begun.set()
        finally:
            samples.append(watch.sample())
        length = later


async def wait(address: str, server: Server, connections: int, seconds: float) -> Waiting:
    """Follow a paused job with so many connections."""
    http = f"http://{address}"
    async with httpx2.AsyncClient(base_url=http, timeout=60) as client:
        file = (await client.post("/v1/files", files={"file": ROWS}, data={"purpose": "fine-tune"})).json()
        made = {"model": "base", "training_file": file["id"], "suffix": "waits", "hyperparameters": {"n_epochs": 500}}
        job = (await client.post("/v1/fine_tuning/jobs", json=made)).json()["id"]
        paused = f"/v1/fine_tuning/jobs/{job}/pause"
        while (await client.post(paused)).json().get("status") != "paused":  # noqa: ASYNC110
            await asyncio.sleep(0.2)
        path = f"/v1/fine_tuning/jobs/{job}/events?stream=true"
        door = HttpDoor(address)
        async with AsyncExitStack() as stack:
            before = await settled(server)
            for _ in range(connections):
                events = await stack.enter_async_context(aclosing(door.events("GET", path)))
                await anext(events)
            taken = await settled(server) - before
            begin, busy = time.perf_counter(), server.seconds()
            await asyncio.sleep(seconds)
            busy = (server.seconds() - busy) / (time.perf_counter() - begin)
        await client.post(f"/v1/fine_tuning/jobs/{job}/cancel")
    return Waiting(connections, taken, busy)


async def settled(server: Server) -> int:
    """The front's memory once it grows no more."""
    known = server.resident()
    while True:
        await asyncio.sleep(1.0)
        now = server.resident()
        if now <= known:
            return now
        known = now


def goals(figures: dict[str, dict[str, float]], waiting: Waiting) -> list[Goal]:
    """At most 15 % fewer tokens/s; 50 MB for the connections."""
    ratio = figures["HTTP"]["tokens_per_second"] / figures["gRPC"]["tokens_per_second"]
    size = waiting.bytes / 1e6 * 1000 / waiting.connections
    return [
        Goal("tokens/s, HTTP to gRPC", ratio, 0.85, percent=True),
        Goal("1,000 connections", size, 50.0, at_most=True, unit=" MB"),
    ]


async def measure(options: argparse.Namespace, base: str) -> tuple[dict[str, Stretches], Waiting]:
    """All of it on one server."""
    http, metrics = f"127.0.0.1:{free_port()}", free_port()
    flags = ["--model", base, "--http-listen", http, "--metrics-listen", f"127.0.0.1:{metrics}", *options.serve]
    found = {name: Stretches() for name in DOORS}
    async with own_server(flags, output=subprocess.DEVNULL) as address, AsyncClient(address) as client:
        server = Server(metrics, tree(os.getpid())[1])
        doors: dict[str, Door] = {"gRPC": GrpcDoor(client), "HTTP": HttpDoor(http)}
        for number in range(options.rounds):
            for name in DOORS if number % 2 == 0 else DOORS[::-1]:
                mark = f"{name} {number}"
                part = await stretch(doors[name], server, options.streams, options.tokens, options.seconds, mark)
                whole = found[name]
                whole.samples += part.samples
                whole.rates += part.rates
                whole.seconds += part.seconds
                whole.tokens += part.tokens
                whole.front_seconds += part.front_seconds
                await asyncio.sleep(1.0)  # what was broken off is freed
        return found, await wait(http, server, options.connections, options.idle)


def figures_of(found: Stretches) -> dict[str, float]:
    """A door in numbers."""
    times: Figures = summarise(kept(found.samples), found.seconds)
    names = ("first_p50", "first_p95", "gap_p50", "gap_p95")
    return {
        "tokens_per_second": found.tokens / found.seconds,
        "front_us_per_token": 1e6 * found.front_seconds / found.tokens,
        **{name: value for name, value in asdict(times).items() if name in names},
    }


def show(figures: dict[str, dict[str, float]], waiting: Waiting, streams: int) -> None:
    """Print the table and the goals."""
    table = Table(title=f"{streams} streams", title_justify="left")
    for column in ("door", "tokens/s", "front per token", "first p50", "p95", "between p50", "p95"):
        table.add_column(column, justify="left" if column == "door" else "right", no_wrap=True)
    for name, f in figures.items():
        times = (f"{1000 * f[each]:.1f} ms" for each in ("first_p50", "first_p95", "gap_p50", "gap_p95"))
        table.add_row(name, f"{f['tokens_per_second']:.1f}", f"{f['front_us_per_token']:.0f} µs", *times)
    console.print(table)
    console.print(
        f"{waiting.connections} connections that wait: {waiting.bytes / 1e6:.1f} MB, {waiting.busy:.1%} of a processor"
    )
    for goal in goals(figures, waiting):
        console.print(str(goal), highlight=False, soft_wrap=True)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.doors", description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--quick", action="store_true", help="one round of four seconds, 100 connections: to see that it runs")
    add("--streams", type=int, default=64, metavar="N", help="at once (default: 64)")
    add("--tokens", type=int, default=128, help="of each answer (default: 128)")
    add("--rounds", type=int, help="(default: 3; quick: 1)")
    add("--seconds", type=float, help="of each stretch (default: 20; quick: 4)")
    add("--connections", type=int, metavar="N", help="that wait (default: 1000; quick: 100)")
    add("--idle", type=float, help="seconds for which they are watched (default: 10; quick: 2)")
    add("--serve", action="append", default=[], metavar="FLAG", help="one more flag of the server; may be repeated")
    add("--material", type=Path, default=ROOT / "build" / "bench", help="where the base is kept")
    add("--json", type=Path, metavar="FILE", help="(default: a new one in results)")
    options = parser.parse_args(arguments)
    for name, whole, quick in (
        ("rounds", 3, 1),
        ("seconds", 20.0, 4.0),
        ("connections", 1000, 100),
        ("idle", 10.0, 2.0),
    ):
        setattr(options, name, getattr(options, name) or (quick if options.quick else whole))
    options.json = options.json or RESULTS / f"front-{time.strftime('%Y%m%d-%H%M%S')}.json"
    return options


def main() -> None:
    """Measure, report."""
    options, machine = parse(), describe()
    options.material.mkdir(parents=True, exist_ok=True)
    console.print(sentence(machine), highlight=False, soft_wrap=True)
    base = prepare("default", options.material, usable_cpus(), options.material / "doors.log")
    found, waiting = asyncio.run(measure(options, base.folder))
    figures = {name: figures_of(stretches) for name, stretches in found.items()}
    show(figures, waiting, options.streams)
    names = ("streams", "tokens", "rounds", "seconds", "connections", "serve")
    made = {
        "machine": machine,
        "settings": {name: getattr(options, name) for name in names},
        "predicted": PREDICTED,
        "doors": figures,
        "tokens/s of each stretch": {name: stretches.rates for name, stretches in found.items()},
        "waiting": asdict(waiting),
        "goals": as_json(goals(figures, waiting)),
    }
    save(options.json, made)


if __name__ == "__main__":
    main()
