"""What must be true of a server that was under load and has come to rest."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

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
EVERY = 5.0
"""Seconds between two samples of the front's memory."""
SERIES = 40
"""Metric series that a tenant or a version of an adapter may have."""
SETTLED, RISE = 60.0, 32 << 20
"""Seconds until libraries, pools and caches are warm, and bytes by which the memory of the last third of the time after
that may be above that of the first third."""
FINAL = {"succeeded", "failed", "cancelled"}


@dataclass(frozen=True)
class Resources:
    """What the front's process holds."""

    memory: int
    files: int
    threads: int
    series: int

    @classmethod
    def of(cls, pid: int, page: str) -> Resources:
        """Those of a process with its page of metrics."""
        process = Path(f"/proc/{pid}")
        series = sum(not line.startswith("#") for line in page.splitlines())
        return cls(memory(pid), len([*(process / "fd").iterdir()]), len([*(process / "task").iterdir()]), series)


def memory(pid: int) -> int:
    """Resident bytes of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) << 12


def leaks(warm: Resources, now: Resources, samples: Sequence[tuple[float, int]], series: int) -> list[str]:
    """What grew without reason: beyond warm, the memory of ``samples`` (seconds, bytes), more than ``series``."""
    found = [
        f"{name} went from {getattr(warm, name)} to {getattr(now, name)}"
        for name, more in (("memory", MORE_MEMORY), ("files", MORE_FILES), ("threads", MORE_THREADS))
        if getattr(now, name) > getattr(warm, name) + more
    ]
    if now.series > warm.series + series:
        found.append(f"metric series went from {warm.series} to {now.series}")
    later = [size for seconds, size in samples if seconds >= SETTLED]
    if third := len(later) // 3:
        early, late = mean(later[:third]), mean(later[-third:])
        if late > early + RISE:
            found.append(f"memory does not level: it rose from {early:.0f} to {late:.0f} bytes under the same load")
    return found


def held(page: str) -> list[str]:
    """What a page of metrics says is still under way."""
    found = [
        f"{name} = {value}"
        for name in ("loramux_requests_running", "loramux_requests_waiting", "loramux_kv_cache_usage_ratio")
        for value in re.findall(rf"^{name} (\S+)$", page, re.MULTILINE)
        if float(value)
    ]
    return found if "loramux_requests_running" in page else [*found, "the engine is away"]


async def check_running(
    soak: Soak, server: ServerProcess, warm: Resources, samples: Sequence[tuple[float, int]]
) -> Resources:
    """Wait for rest, then compare the server with the ledger; what is wrong goes there. Gives what it holds."""
    for what in await _rest(soak, server):
        soak.ledger.violate(f"still held at rest: {what}")
    await _compare(soak)
    now = Resources.of(server.process.pid, await asyncio.to_thread(server.metrics))
    owners = sum(map(len, soak.ledger.adapters.values())) + len(soak.tenants)
    for leak in leaks(warm, now, samples, SERIES * owners):
        soak.ledger.violate(leak)
    return now


async def _rest(soak: Soak, server: ServerProcess) -> list[str]:
    """What is still under way when time is up; empty: nothing."""
    deadline = time.monotonic() + REST
    while True:
        left = held(await asyncio.to_thread(server.metrics))
        left += [f"job {job}" for job in await _open_jobs(soak)]
        if not left or time.monotonic() > deadline:
            return left
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
    for what in (*left_behind(state), *told_badly(server.lines, secrets)):
        soak.ledger.violate(what)


def left_behind(state: Path) -> list[str]:
    """What is wrong in the state directory of a server that has ended."""
    found, running = check(state)
    wrong = [f"doctor: {finding}" for finding in found if finding.check != "orphan"]
    if running:
        wrong.append("the state directory is still in use")
    if left := [*(state / "tmp").iterdir()]:
        wrong.append(f"temporary files are left: {left}")
    return wrong


def told_badly(lines: Sequence[str], secrets: Sequence[str]) -> list[str]:
    """Defects and secrets in a log."""
    wrong: list[str] = []
    for i, line in enumerate(lines):
        if "Traceback" in line or "call failed" in line:
            wrong.append("the log has a defect:\n" + "\n".join(lines[max(0, i - 2) : i + 40]))
        if any(secret in line for secret in secrets):
            wrong.append("the log has a secret")
    return wrong
