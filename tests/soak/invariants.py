"""What must be true of a server that was under load and has come to rest."""

from __future__ import annotations

import asyncio
import re
import time
from dataclasses import dataclass
from pathlib import Path

import loramux
from loramux import AsyncClient
from loramux_server.app.maintenance import check
from tests.e2e.server_process import ServerProcess

from .actors import Soak

REST = 120.0
"""Seconds that jobs and requests get to end once nobody asks for more."""
MORE_MEMORY = 96 << 20
"""Bytes that the front may have grown by since it was warm."""
MORE_FILES, MORE_THREADS = 16, 16
FINAL = {"succeeded", "failed", "cancelled"}


def memory(server: ServerProcess) -> int:
    """Resident bytes of the front."""
    return int(Path(f"/proc/{server.process.pid}/statm").read_text().split()[1]) << 12


@dataclass(frozen=True)
class Resources:
    """What the front's process holds."""

    memory: int
    files: int
    threads: int
    series: int

    @classmethod
    def of(cls, server: ServerProcess) -> Resources:
        process = Path(f"/proc/{server.process.pid}")
        series = sum(not line.startswith("#") for line in server.metrics().splitlines())
        return cls(memory(server), len([*(process / "fd").iterdir()]), len([*(process / "task").iterdir()]), series)


async def check_running(soak: Soak, server: ServerProcess, warm: Resources) -> Resources:
    """Wait for rest, then compare the server with the ledger; what is wrong goes there. Gives what it holds."""
    held = await _rest(soak, server)
    for what in held:
        soak.ledger.violate(f"still held at rest: {what}")
    await _compare(soak)
    now = await asyncio.to_thread(Resources.of, server)
    for name, more in (("memory", MORE_MEMORY), ("files", MORE_FILES), ("threads", MORE_THREADS)):
        before, after = getattr(warm, name), getattr(now, name)
        if after > before + more:
            soak.ledger.violate(f"{name} went from {before} to {after}")
    live = sum(map(len, soak.ledger.adapters.values()))
    if now.series > warm.series + 40 * (live + len(soak.tenants)):
        soak.ledger.violate(f"metric series went from {warm.series} to {now.series} with {live} adapters")
    return now


async def _rest(soak: Soak, server: ServerProcess) -> list[str]:
    """What is still under way when time is up; empty: nothing."""
    deadline = time.monotonic() + REST
    while True:
        page = await asyncio.to_thread(server.metrics)
        held = [
            f"{name} = {value}"
            for name in ("loramux_requests_running", "loramux_requests_waiting", "loramux_kv_cache_usage_ratio")
            for value in re.findall(rf"^{name} (\S+)$", page, re.MULTILINE)
            if float(value)
        ]
        held += [f"job {job}" for job in await _open_jobs(soak)]
        if "loramux_requests_running" not in page:
            held.append("the engine is away")
        if not held or time.monotonic() > deadline:
            return held
        await asyncio.sleep(0.5)


async def _open_jobs(soak: Soak) -> list[str]:
    found: list[str] = []
    for tenant in soak.tenants:
        async with soak.client(tenant) as client:
            found += [job.id for job in await client.jobs.list() if job.state not in FINAL]
    return found


async def _compare(soak: Soak) -> None:
    ledger = soak.ledger
    for tenant in soak.tenants:
        async with soak.client(tenant) as client:
            for (owner, name), versions in ledger.adapters.items():
                if owner == tenant.name:
                    await _compare_adapter(soak, client, name, versions)
            have = {dataset.id for dataset in await client.datasets.list()}
            if lost := ledger.datasets.get(tenant.name, set()) - have:
                ledger.violate(f"acknowledged datasets of {tenant.name} are gone: {sorted(lost)}")
            jobs = {job.id: job for job in await client.jobs.list()}
            mine = {id for id, owner in ledger.jobs.items() if owner == tenant.name}
            if lost := mine - jobs.keys():
                ledger.violate(f"acknowledged jobs of {tenant.name} are gone: {sorted(lost)}")
            if foreign := (ledger.jobs.keys() - mine) & jobs.keys():
                ledger.violate(f"{tenant.name} sees jobs of others: {sorted(foreign)}")
            for job in jobs.values():
                if job.state == "failed":
                    ledger.violate(f"job {job.id} failed: {job.error}")
                if job.state == "succeeded":
                    await client.generate("x", adapters=[job.adapter.ref], max_tokens=1)


async def _compare_adapter(soak: Soak, client: AsyncClient, name: str, versions: dict[int, str]) -> None:
    try:
        found = {v.version: v.digest for v in (await client.adapters.get(name)).versions}
    except loramux.NotFound:
        found = {}
    if found != versions:
        soak.ledger.violate(f"{name} has {found}, acknowledged were {versions}")
        return
    for number in versions:
        await client.adapters.download(f"{name}@{number}", soak.folder / f"{name}-{number}")
        await client.generate("x", adapters=[f"{name}@{number}"], max_tokens=1)


def check_stopped(soak: Soak, server: ServerProcess, state: Path, secrets: list[str]) -> None:
    """After a stop by a signal: nothing half done is left, and the log holds no defect and no secret."""
    found, running = check(state)
    if running:
        soak.ledger.violate("the state directory is still in use")
    for finding in found:
        if finding.check != "orphan":
            soak.ledger.violate(f"doctor: {finding}")
    if left := [*(state / "tmp").iterdir()]:
        soak.ledger.violate(f"temporary files are left: {left}")
    for i, line in enumerate(server.lines):
        if "Traceback" in line or "call failed" in line:
            soak.ledger.violate("the log has a defect:\n" + "\n".join(server.lines[max(0, i - 2) : i + 40]))
        if any(secret in line for secret in secrets):
            soak.ledger.violate("the log has a secret")
