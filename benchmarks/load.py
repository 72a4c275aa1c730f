"""How fast a server answers: tokens/s and latency over gRPC at several numbers of concurrent requests.

    make bench                                            # starts a server of its own on the default base
    python -m benchmarks.load --address HOST:PORT --adapter acme --adapter acme,json --json results.json

Every request asks for the same number of new tokens, greedily, whatever the model would rather do, and there are four
times as many requests as may run at once. With ``--adapter`` (repeat it; a comma stacks) the requests take turns over
those stacks; without, they ask the base. The first round warms up and is not counted.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO

from rich.console import Console
from rich.table import Table

from loramux import AsyncClient

from .samples import Figures, Sample, Stopwatch, summarise
from .systems.children import ended, free_port, start, wait_until

PROMPTS = (
    "Write a short note that thanks a neighbour for watering the plants.",
    "Explain in simple words why the sky is blue.",
    "List some things to check before a long bicycle ride.",
    "Describe a quiet morning in a harbour town.",
)

Adapters = Sequence[str]


@dataclass(frozen=True, slots=True)
class Result:
    """One level of concurrency."""

    concurrency: int
    figures: Figures


async def ask(client: AsyncClient, prompt: str, adapters: Adapters, tokens: int) -> Sample:
    """Stream one answer."""
    watch = Stopwatch()
    stream = client.stream(prompt, adapters=adapters, max_tokens=tokens, temperature=0.0, ignore_eos=True)
    async with stream:
        async for chunk in stream:
            watch.tokens(chunk.token_ids)
    return watch.sample()


async def level(client: AsyncClient, stacks: Sequence[Adapters], concurrency: int, tokens: int) -> Result:
    """Run four requests per place at one level of concurrency."""
    gate = asyncio.Semaphore(concurrency)

    async def one(i: int) -> Sample:
        async with gate:
            return await ask(client, PROMPTS[i % len(PROMPTS)], stacks[i % len(stacks)], tokens)

    begin = time.perf_counter()
    samples = await asyncio.gather(*(one(i) for i in range(4 * concurrency)))
    return Result(concurrency, summarise(samples, time.perf_counter() - begin))


async def measure(address: str, stacks: Sequence[Adapters], levels: Sequence[int], tokens: int) -> list[Result]:
    """All levels, after a round that warms up every stack."""
    async with AsyncClient(address) as client:
        await asyncio.gather(*(ask(client, PROMPTS[0], stack, 8) for stack in stacks))
        return [await level(client, stacks, concurrency, tokens) for concurrency in levels]


@asynccontextmanager
async def own_server(
    flags: Sequence[str],
    environment: Mapping[str, str] | None = None,
    output: int | IO[bytes] = 2,
    module: str = "loramux_server",
) -> AsyncIterator[str]:
    """A server on a free port, its registry in a temporary folder unless the flags name one; gives its address.

    ``environment`` comes on top of this process's; what the server says goes to ``output``. ``module`` is run.
    """
    address = f"127.0.0.1:{free_port()}"
    with ExitStack() as stack:
        command = [*(sys.executable, "-m", module, "serve"), "--listen", address]
        command += ["--http-listen", "off", "--metrics-listen", "off"]
        if "--state-dir" not in flags:
            command += ["--state-dir", stack.enter_context(TemporaryDirectory(prefix="loramux-bench-"))]
        server = start([*command, *flags], environment or {}, output)
        stack.callback(ended, server)
        async with AsyncClient(address) as client:

            async def ready() -> bool:
                return await client.health(timeout=1.0) == "SERVING"

            await wait_until(ready, server)
        yield address


def show(results: Sequence[Result], title: str) -> None:
    """Print the table."""
    table = Table(title=title, title_justify="left")
    for column in ("at once", "requests", "tokens/s", "first token p50", "between p50", "between p95"):
        table.add_column(column, justify="right")
    for result in results:
        f = result.figures
        times = (f"{1000 * t:.1f} ms" for t in (f.first_p50, f.gap_p50, f.gap_p95))
        table.add_row(str(result.concurrency), str(f.requests), f"{f.tokens_per_second:.1f}", *times)
    Console().print(table)


async def run(options: argparse.Namespace) -> None:
    """Find or start a server, measure, report."""
    stacks: list[Adapters] = [names.split(",") for names in options.adapter or ()] or [()]
    async with AsyncExitStack() as stack:
        address = options.address or await stack.enter_async_context(own_server(options.flags))
        async with AsyncClient(address) as client:
            info = await client.info()
        results = await measure(address, stacks, options.concurrency, options.tokens)
    names = "; ".join(" + ".join(names) or "base" for names in stacks)
    show(results, f"{info.base_name} on {info.device} in {info.dtype}, {options.tokens} new tokens, stacks: {names}")
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


def main() -> None:
    """Parse the flags and run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--address", help="server to measure (default: start one)")
    parser.add_argument("--adapter", action="append", metavar="NAME[,NAME...]", help="stack to take turns over")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 4, 16], metavar="N")
    parser.add_argument("--tokens", type=int, default=64, help="new tokens per request (default: 64)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    parser.add_argument("flags", nargs="*", metavar="-- FLAGS", help="flags of loramux serve, for a server of our own")
    options = parser.parse_args()
    asyncio.run(run(options))


if __name__ == "__main__":
    main()
