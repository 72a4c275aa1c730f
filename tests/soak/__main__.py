"""Put random load on a server for minutes, then check what must be true of it.

make soak                                    # ten minutes
make soak SOAK_ARGS="--minutes 60 --seed 7"
python -m tests.soak --minutes 2 --json FILE
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import signal
import sys
import tempfile
import time
from collections.abc import Coroutine, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress, TextColumn, TimeRemainingColumn

from benchmarks.machine import describe
from loramux import AsyncClient
from tests.e2e.server_process import ServerProcess, server_process
from tests.e2e.test_random_kills_real import Real
from tests.tiny import write_model

from . import actors, http_actors, operator
from .actors import Soak, Tenant
from .invariants import EVERY, Resources, check_running, check_stopped, memory
from .ledger import Ledger
from .traced import FOLDER
from .traces import begin, held

TENANTS = ("acme", "globex", "initech")
SCOPES = ("infer", "adapters:read", "adapters:write", "train")
FLAGS = (
    "--device",
    "cpu",
    "--dtype",
    "float32",
    "--kv-cache-memory",
    "8MiB",
    "--max-running",
    "16",
    "--max-queue",
    "64",
)
LISTEN = ("--metrics-listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0")
WARM = 0.3
"""Part of the run after which the server's memory counts as warm."""


async def run(minutes: float, seed: int, folder: Path, *, trace: bool) -> tuple[Ledger, dict[str, Any]]:
    """One soak; gives what was acknowledged and violated, and the server's resources warm, over time and at rest."""
    home, state = folder / "home", folder / "state"
    home.mkdir()
    model = write_model(folder / "model", "llama")
    flags = (*FLAGS, "--model", str(model), "--state-dir", str(state), *LISTEN)
    with server_process(
        home, *flags, module="tests.soak.traced" if trace else "loramux_server", variables={FOLDER: str(folder)}
    ) as server:
        await asyncio.to_thread(server.wait_for, "is ready")
        tenants = [Tenant(name, (await operator.create_key(home, state, name, *SCOPES))["key"]) for name in TENANTS]
        await _closed(server.address)
        soak = Soak(server.address, server.http_address, Real.info, tenants, Ledger(), folder / "folders")
        soak.folder.mkdir()
        warm, samples = await _load(
            soak, server, home, state, minutes * 60, random.Random(seed), folder if trace else None
        )
        rest = await check_running(soak, server, warm, samples)
        if trace:
            print(*await held(folder), sep="\n")
        server.process.send_signal(signal.SIGTERM)
        if code := await asyncio.to_thread(server.finish):
            soak.ledger.violate(f"the server ended with exit code {code}")
    check_stopped(soak, server, state, [tenant.key for tenant in tenants])
    return soak.ledger, {"warm": asdict(warm), "rest": asdict(rest), "memory": samples}


async def _closed(address: str) -> None:
    """Return once the first keys hold."""
    async with AsyncClient(address) as stranger:
        while not await operator.refused(stranger):  # noqa: ASYNC110 - it tells nobody when it has read the keys
            await asyncio.sleep(0.1)


async def _load(
    soak: Soak, server: ServerProcess, home: Path, state: Path, seconds: float, draw: random.Random, trace: Path | None
) -> tuple[Resources, list[tuple[float, int]]]:
    """Run all actors for so long; gives the resources once the server was warm, and its memory over time."""

    def one() -> random.Random:
        return random.Random(draw.random())

    work: list[Coroutine[Any, Any, None]] = [
        operator.keys(soak, home, state, one()),
        operator.quotas(soak, home, state, one()),
        operator.kills(soak, server, one()),
    ]
    for tenant in soak.tenants:
        work += [actors.asker(soak, tenant, one()) for _ in range(6)]
        work += [http_actors.asker(soak, tenant, one()) for _ in range(3)]
        work += [actors.publisher(soak, tenant, name, one()) for name in ("a", "b")]
        work.append(actors.trainer(soak, tenant, one()))
    started = time.monotonic()
    warm: Resources | None = None
    samples: list[tuple[float, int]] = []
    with Progress(
        *Progress.get_default_columns()[:2], TimeRemainingColumn(), TextColumn("{task.fields[said]}"), transient=True
    ) as progress:
        bar = progress.add_task("soak", total=seconds, said="")
        async with asyncio.TaskGroup() as group:
            for each in work:
                group.create_task(each)
            while (passed := time.monotonic() - started) < seconds:
                await soak.pause(1.0)
                if passed >= EVERY * len(samples):
                    samples.append((round(passed, 1), memory(server.process.pid)))
                if warm is None and passed > WARM * seconds:
                    warm = Resources.of(server.process.pid, await asyncio.to_thread(server.metrics))
                    if trace is not None:
                        await begin(trace)
                said = f"{sum(soak.ledger.counts.values())} calls, {len(soak.ledger.violations)} violations"
                progress.update(bar, completed=passed, said=said)
            soak.stop.set()
    assert warm is not None
    return warm, samples


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0, help="of load (default: 10)")
    parser.add_argument("--seed", type=int, help="of what is drawn (default: another one each time)")
    parser.add_argument("--trace", action="store_true", help="say where the front allocated what it did not let go")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the outcome there")
    options = parser.parse_args(arguments)
    seed = random.SystemRandom().getrandbits(32) if options.seed is None else options.seed
    console = Console(highlight=False)
    console.print(f"seed {seed}, {options.minutes:g} minutes")
    with tempfile.TemporaryDirectory(prefix="loramux-soak-") as folder:
        ledger, resources = asyncio.run(run(options.minutes, seed, Path(folder), trace=options.trace))
    for what, count in sorted(ledger.counts.items()):
        console.print(f"  {count:8}  {what}")
    console.print(f"resources {resources}", soft_wrap=True)
    for violation in ledger.violations:
        console.print(f"VIOLATION {violation}", soft_wrap=True, style="red", markup=False)
    if options.json is not None:
        outcome = {
            "machine": describe(),
            "seed": seed,
            "minutes": options.minutes,
            "calls": dict(sorted(ledger.counts.items())),
            "resources": resources,
            "violations": ledger.violations,
        }
        options.json.write_text(json.dumps(outcome, indent=2) + "\n")
    console.print("no violation" if not ledger.violations else f"{len(ledger.violations)} violations")
    return 1 if ledger.violations else 0


if __name__ == "__main__":
    sys.exit(main())
