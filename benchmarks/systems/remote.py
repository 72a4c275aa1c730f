"""loramux as its users meet it: ``loramux serve`` as a process, asked over gRPC by the client library."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from loramux import AsyncClient

from ..job import Job
from ..processes import tree
from ..samples import Sample, Stopwatch
from ..workloads import Ask, Cell, closed_loop
from .children import ended, free_port, start, wait_until


class GrpcSystem:
    """A server and a client of it."""

    def __init__(self, client: AsyncClient, server: subprocess.Popen[bytes], names: Sequence[str]) -> None:
        self.facts: dict[str, str] = {}
        self._client, self._server, self._names = client, server, names

    def refuses(self, cell: Cell) -> str:
        return ""

    def pids(self) -> list[int]:
        return tree(self._server.pid)

    async def run(self, asks: Sequence[Ask], concurrency: int) -> tuple[list[Sample], float]:
        return await closed_loop(asks, concurrency, self._one)

    async def _one(self, ask: Ask) -> Sample:
        watch = Stopwatch()
        adapters = {self._names[number]: weight for number, weight in ask.stack}
        stream = self._client.stream(
            ask.prompt, adapters=adapters, max_tokens=ask.tokens, temperature=0.0, ignore_eos=True
        )
        async with stream:
            async for chunk in stream:
                watch.tokens(chunk.token_ids)
        return watch.sample(stream.completion.usage.prompt_tokens)


@asynccontextmanager
async def open_server(job: Job) -> AsyncIterator[GrpcSystem]:
    """Start the server, upload the adapters, stop it in the end."""
    address = f"127.0.0.1:{free_port()}"
    flags = {
        "--model": job.base.folder,
        "--state-dir": job.scratch,
        "--listen": address,
        "--http-listen": "off",
        "--metrics-listen": "off",
        "--dtype": job.dtype,
        "--threads": str(job.threads),
        "--device": job.device,
        "--speculate": "off",  # every system computes each token of the answers
    }
    command = [sys.executable, "-m", "loramux_server", "serve", *(part for pair in flags.items() for part in pair)]
    server = start(command, {})
    try:
        async with AsyncClient(address) as client:

            async def ready() -> bool:
                return await client.health(timeout=1.0) == "SERVING"

            await wait_until(ready, server)
            names = [Path(folder).name for folder in job.base.adapters]
            for name, folder in zip(names, job.base.adapters, strict=True):
                await client.adapters.upload(name, folder)
            system = GrpcSystem(client, server, names)
            info = await client.info()
            system.facts = {"dtype": info.dtype, "device": info.device}
            yield system
    finally:
        ended(server)
