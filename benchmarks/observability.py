"""What watching costs: metrics that are scraped, usage, a line for each call, and traces, beside a server without.

    make bench-observability                            # five rounds, seven minutes
    make bench-observability BENCH_ARGS=--quick         # to see that it runs

Two servers take turns under the same streams. One counts for nobody (``benchmarks.unobserved``). The other is scraped
each five seconds, flushes usage as often, logs a JSON line for each call and sends every span to a collector, which
runs here and throws them away. A stretch lasts until prompts are few beside answers. Goal: at most 2 % fewer tokens/s.
"""

from __future__ import annotations

import argparse
import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from statistics import median

import httpx2

from loramux import AsyncClient
from loramux_server.host.resources import usable_cpus

from .goals import Goal, as_json
from .machine import describe, sentence
from .serving import RESULTS, ROOT, console, prepare, save
from .streams import keep_streaming
from .systems.children import free_port
from .turns import in_turn, ratio, servers

UNSEEN, WATCHED = "unseen", "watched"
PREDICTED = 0.99
"""Tokens/s, watched to unseen: what was expected before it was measured for the first time."""
LEAST = 0.98
EVERY = 5.0
"""Seconds between two scrapes."""


class _Collector(BaseHTTPRequestHandler):
    """Takes spans over HTTP, and counts their bytes."""

    taken = 0

    def do_POST(self) -> None:
        _Collector.taken += len(self.rfile.read(int(self.headers["content-length"])))
        self.send_response(200)
        self.send_header("content-type", "application/x-protobuf")
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None: ...


@contextmanager
def collecting() -> Iterator[str]:
    """A collector of spans; gives its URL."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Collector)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1/traces"
    finally:
        server.shutdown()


async def scrape(port: int) -> None:
    """Ask for the metrics as Prometheus does, for ever."""
    async with httpx2.AsyncClient(timeout=30) as client:
        while True:
            (await client.get(f"http://127.0.0.1:{port}/metrics")).raise_for_status()
            await asyncio.sleep(EVERY)


async def measure(options: argparse.Namespace, base: str) -> dict[str, list[float]]:
    """Tokens/s of each round, by server."""
    metrics = free_port()
    log = options.material / "observability.log"
    shared = ("--model", base, "--dtype", options.dtype, "--device", "cpu")

    async def speed(client: AsyncClient, mark: str) -> float:
        await keep_streaming(client, options.streams, 4, 1.0, f"warm {mark}")
        samples, took = await keep_streaming(client, options.streams, options.tokens, options.seconds, mark)
        return sum(len(sample.tokens) for sample in samples) / took

    async with AsyncExitStack() as stack:
        traces = stack.enter_context(collecting())
        flags = ("--metrics-listen", f"127.0.0.1:{metrics}", "--log-format", "json", "--log-requests", "on")
        watched = (*shared, *flags, "--otlp-traces-endpoint", traces, "--trace-sample-ratio", "1")
        output = stack.enter_context(log.open("wb"))
        ways = {UNSEEN: shared, WATCHED: watched}
        clients = await stack.enter_async_context(servers(ways, output, {UNSEEN: "benchmarks.unobserved"}))
        scraping = asyncio.create_task(scrape(metrics))
        try:
            found = await in_turn(clients, options.rounds, speed)
        finally:
            scraping.cancel()
            with suppress(asyncio.CancelledError):
                await scraping
    if not _Collector.taken or b'"code"' not in log.read_bytes():
        raise SystemExit(f"the watched server sent no spans, or logged no calls: see {log}")
    return found


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.observability", description=(__doc__ or "").partition("\n")[0]
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="two rounds of four seconds: to see that it runs")
    add("--streams", type=int, default=64, metavar="N", help="at once (default: 64)")
    add("--tokens", type=int, default=128, help="of each answer (default: 128)")
    add("--rounds", type=int, help="(default: 5; quick: 2)")
    add("--seconds", type=float, help="of each stretch (default: 40; quick: 4)")
    add("--dtype", choices=("auto", "float32", "bfloat16"), default="auto", help="(default: the server's)")
    add("--material", type=Path, default=ROOT / "build" / "bench", help="where the base is kept")
    add("--json", type=Path, metavar="FILE", help="(default: a new one in results)")
    options = parser.parse_args()
    options.rounds = options.rounds or (2 if options.quick else 5)
    options.seconds = options.seconds or (4.0 if options.quick else 40.0)
    options.json = options.json or RESULTS / f"observability-{time.strftime('%Y%m%d-%H%M%S')}.json"
    if min(options.streams, options.tokens, options.rounds) < 1:
        parser.error("--streams, --tokens and --rounds must be at least 1")
    return options


def main() -> None:
    """Measure, print, write the file."""
    options, machine = parse(), describe()
    options.material.mkdir(parents=True, exist_ok=True)
    console.print(sentence(machine), highlight=False, soft_wrap=True)
    base = prepare("default", options.material, usable_cpus(), options.material / "observability.log")
    found = asyncio.run(measure(options, base.folder))
    for way, speeds in found.items():
        console.print(f"{way}: {median(speeds):.1f} tokens/s ({', '.join(f'{s:.1f}' for s in speeds)})", soft_wrap=True)
    goal = Goal("tokens/s, watched to unseen", ratio(found, WATCHED, UNSEEN), LEAST, percent=True)
    console.print(str(goal), highlight=False, soft_wrap=True)
    names = ("streams", "tokens", "rounds", "seconds", "dtype")
    report = {
        "machine": machine,
        "settings": {name: getattr(options, name) for name in names},
        "predicted": PREDICTED,
        "tokens_per_second": found,
        "goals": as_json([goal]),
    }
    save(options.json, report)


if __name__ == "__main__":
    main()
