"""How fast a server answers: tokens/s and latency over gRPC at several numbers of concurrent requests.

    make bench                                            # starts a server of its own on the default base
    python benchmarks/serving.py --address HOST:PORT --adapter acme --adapter acme,json --json results.json

Every request asks for the same number of new tokens, greedily, whatever the model would rather do, and there are four
times as many requests as may run at once. With ``--adapter`` (repeat it; a comma stacks) the requests take turns over
those stacks; without, they ask the base. The first round warms up and is not counted.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.table import Table

from loramux import AsyncClient, Client, LoramuxError

PROMPTS = (
    "Write a short note that thanks a neighbour for watering the plants.",
    "Explain in simple words why the sky is blue.",
    "List some things to check before a long bicycle ride.",
    "Describe a quiet morning in a harbour town.",
)
START_LIMIT = 300.0
"""Seconds that a server of our own may take to be ready; the first start converts the base."""

Adapters = Sequence[str]


@dataclass(frozen=True, slots=True)
class Sample:
    """One request: seconds to its first token, seconds between tokens, tokens that came."""

    first: float
    gaps: tuple[float, ...]
    tokens: int


@dataclass(frozen=True, slots=True)
class Result:
    """One level of concurrency. Times in seconds; tokens are generated ones."""

    concurrency: int
    requests: int
    tokens_per_second: float
    first_token_p50: float
    between_tokens_p50: float
    between_tokens_p95: float


async def ask(client: AsyncClient, prompt: str, adapters: Adapters, tokens: int) -> Sample:
    """Stream one answer. A chunk may carry several tokens; they share its time since the chunk before."""
    begin = last = time.perf_counter()
    first, gaps, count = 0.0, [], 0
    stream = client.stream(prompt, adapters=adapters, max_tokens=tokens, temperature=0.0, ignore_eos=True)
    async with stream:
        async for chunk in stream:
            if not chunk.token_ids:
                continue
            now, new = time.perf_counter(), len(chunk.token_ids)
            if count:
                gaps += [(now - last) / new] * new
            else:
                first = now - begin
            last, count = now, count + new
    return Sample(first, tuple(gaps), count)


async def level(client: AsyncClient, stacks: Sequence[Adapters], concurrency: int, tokens: int) -> Result:
    """Run four requests per place at one level of concurrency."""
    gate = asyncio.Semaphore(concurrency)

    async def one(i: int) -> Sample:
        async with gate:
            return await ask(client, PROMPTS[i % len(PROMPTS)], stacks[i % len(stacks)], tokens)

    begin = time.perf_counter()
    samples = await asyncio.gather(*(one(i) for i in range(4 * concurrency)))
    seconds = time.perf_counter() - begin
    gaps = [gap for sample in samples for gap in sample.gaps]
    return Result(
        concurrency=concurrency,
        requests=len(samples),
        tokens_per_second=sum(sample.tokens for sample in samples) / seconds,
        first_token_p50=median(sample.first for sample in samples),
        between_tokens_p50=median(gaps),
        between_tokens_p95=quantiles(gaps, n=20)[-1],
    )


async def measure(address: str, stacks: Sequence[Adapters], levels: Sequence[int], tokens: int) -> list[Result]:
    """All levels, after a round that warms up every stack."""
    async with AsyncClient(address) as client:
        await asyncio.gather(*(ask(client, PROMPTS[0], stack, 8) for stack in stacks))
        return [await level(client, stacks, concurrency, tokens) for concurrency in levels]


@contextmanager
def own_server(flags: Sequence[str]) -> Iterator[str]:
    """A server on a free port, its registry in a temporary folder unless the flags name one; gives its address."""
    with socket.socket() as probe, ExitStack() as stack:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
        probe.close()
        command = [*(sys.executable, "-m", "loramux_server", "serve"), "--listen", address, "--metrics-listen", "off"]
        if "--state-dir" not in flags:
            command += ["--state-dir", stack.enter_context(TemporaryDirectory(prefix="loramux-bench-"))]
        server = subprocess.Popen([*command, *flags])
        try:
            wait_until_ready(address, server)
            yield address
        finally:
            server.terminate()
            server.wait()


def wait_until_ready(address: str, server: subprocess.Popen[bytes]) -> None:
    """Return when the server takes requests. Exits if it ends or takes too long."""
    deadline = time.monotonic() + START_LIMIT
    with Client(address) as client:
        while time.monotonic() < deadline:
            if server.poll() is not None:
                sys.exit(f"the server ended with {server.returncode}")
            try:
                if client.health(timeout=1.0) == "SERVING":
                    return
            except LoramuxError:
                pass  # not listening yet
            time.sleep(0.2)
    sys.exit(f"the server was not ready after {START_LIMIT:.0f} s")


def show(results: Sequence[Result], title: str) -> None:
    """Print the table."""
    table = Table(title=title, title_justify="left")
    for column in ("at once", "requests", "tokens/s", "first token p50", "between p50", "between p95"):
        table.add_column(column, justify="right")
    for r in results:
        times = (r.first_token_p50, r.between_tokens_p50, r.between_tokens_p95)
        table.add_row(
            str(r.concurrency), str(r.requests), f"{r.tokens_per_second:.1f}", *(f"{1000 * t:.1f} ms" for t in times)
        )
    Console().print(table)


def main() -> None:
    """Parse the flags, find or start a server, measure, report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--address", help="server to measure (default: start one)")
    parser.add_argument("--adapter", action="append", metavar="NAME[,NAME...]", help="stack to take turns over")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 4, 16], metavar="N")
    parser.add_argument("--tokens", type=int, default=64, help="new tokens per request (default: 64)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    parser.add_argument("flags", nargs="*", metavar="-- FLAGS", help="flags of loramux serve, for a server of our own")
    options = parser.parse_args()
    stacks: list[Adapters] = [names.split(",") for names in options.adapter or ()] or [()]
    with ExitStack() as stack:
        address = options.address or stack.enter_context(own_server(options.flags))
        with Client(address) as client:
            info = client.info()
        results = asyncio.run(measure(address, stacks, options.concurrency, options.tokens))
    names = "; ".join(" + ".join(names) or "base" for names in stacks)
    title = f"{info.base_name} on {info.device} in {info.dtype}, {options.tokens} new tokens, stacks: {names}"
    show(results, title)
    if options.json:
        report = {
            "base": info.base_name,
            "device": info.device,
            "dtype": info.dtype,
            "tokens": options.tokens,
            "stacks": [list(names) for names in stacks],
            "results": [asdict(result) for result in results],
        }
        options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
