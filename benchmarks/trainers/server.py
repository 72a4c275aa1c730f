"""loramux as its users meet it: a server without any requests, and jobs that come over gRPC."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

from loramux import AsyncClient, AsyncJob
from loramux_server.config.tree import leaves

from ..load import own_server
from ..processes import peak_bytes, reset_peak, tree
from ..train_job import Steps, TrainJob, TrainResult

AT_ONCE = "--max-training-jobs"
NAME = "bench"


def server_flags(job: TrainJob) -> list[str]:
    """Flags of a server that trains a job."""
    flags = {
        "--model": job.base,
        "--device": job.device,
        "--dtype": job.dtype,
        "--threads": str(job.threads),
        "--cpu-weights": job.cpu_weights,
    }
    if job.activation_memory is not None:
        flags["--training-activation-memory"] = str(job.activation_memory)
    if len(job.data) > 1 and can_train_several():
        flags[AT_ONCE] = str(len(job.data))
    return [part for pair in flags.items() for part in pair]


def can_train_several() -> bool:
    """Whether this server has a setting for jobs that run at once."""
    return any(leaf.flag == AT_ONCE for leaf in leaves())


async def follow(job: AsyncJob, asked: float) -> Steps:
    """Steps of a job until it ends, in seconds since ``asked`` (as time.time tells it). Raises JobFailed."""
    begin = 0.0
    ends: list[float] = []
    tokens: list[int] = []
    losses: list[float] = []
    async for event in job.events():
        if event.type == "step":
            ends.append(event.time - asked)
            tokens.append(int(event.metrics["tokens"]))
            losses.append(event.metrics["loss"])
        elif not ends and event.type == "message" and event.total_steps and not begin:
            begin = event.time - asked  # the engine is set up and its first step begins
    await job.wait()
    return Steps(begin, tuple(ends), tuple(tokens), tuple(losses))


async def _run(job: TrainJob) -> TrainResult:
    async with own_server(server_flags(job)) as address, AsyncClient(address) as client:
        info = await client.info()
        processes = tree(os.getpid())[1:]
        reset_peak(processes)
        asked = time.time()
        names = [NAME if not i else f"{NAME}-{i}" for i in range(len(job.data))]
        jobs = [
            await client.train(name, Path(path), **job.settings) for name, path in zip(names, job.data, strict=True)
        ]
        steps = await asyncio.gather(*(follow(each, asked) for each in jobs))
        peak = peak_bytes(tree(os.getpid())[1:])
        folder = Path(job.scratch) / "last"
        await client.adapters.download(NAME, folder)
    facts = {"dtype": info.dtype}
    if len(job.data) > 1:
        facts["jobs at once"] = str(len(job.data) if can_train_several() else 1)
    return TrainResult(tuple(steps), peak, {len(steps[0].ends): str(folder)}, facts)


def run_server(job: TrainJob) -> TrainResult:
    """Train every file of a job, all queued together."""
    return asyncio.run(_run(job))
