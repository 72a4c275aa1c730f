"""The life of adapters at scale: thousands registered, a thousand asked for, room for a few on the device.

    make bench-scale                                # all of it: about ten minutes on two cores, and 6 GB of disk
    make bench-scale BENCH_ARGS=--quick             # a minute or two, with fewer adapters: a trial, not a figure
    python -m benchmarks.scale --parts start cold   # some of it

Start-up and listing with thousands of adapters registered; Zipf traffic beside the same over a few resident ones; as
many adapters as there is room for, then twice as many; loads from disk; and what a base of seven billion parameters
would make of it. Everything goes through ``loramux serve`` over gRPC on the default base, whose prepared state
directory is kept for later runs. The table goes to standard output, all figures and the machine to a JSON file.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import msgspec

from loramux_server.host.resources import usable_cpus

from . import scale_parts as parts
from . import scale_table as table
from .job import BankLoads, Base, Registry
from .machine import describe, sentence
from .page_cache import read_rate
from .serving import RESULTS, ROOT, WEIGHT_BYTES, child, console, prepare, rates
from .seven_billion import FORMULA, compute

PARTS = ("start", "list", "traffic", "cliff", "cold", "7b")
RANK = 8
DISK_BYTES = 512 << 20
"""Read to learn how fast the disk is."""


@dataclass(frozen=True, slots=True)
class Size:
    """How much of everything. ``few`` stay resident while ``popular`` are asked for in Zipf traffic."""

    registered: int = 5000
    popular: int = 1000
    few: int = 16
    slots: int = 32
    host: int = 256
    starts: int = 3
    gets: int = 200
    requests: int = 256
    at_once: int = 16
    cliff_requests: int = 128
    rounds: int = 2
    tokens: int = 32
    cold: int = 40
    seven: int = 10

    @property
    def whole(self) -> int:
        """Adapters on all linears: those of the traffic, and those that are loaded cold."""
        return self.popular + self.cold + 1


QUICK = Size(
    registered=300, popular=100, few=8, slots=16, host=48, starts=1, gets=50, requests=64, at_once=8, cliff_requests=48,
    rounds=1, tokens=8, cold=10, seven=3,
)  # fmt: skip


class Run:
    """One run: what was found so far."""

    def __init__(self, options: argparse.Namespace, size: Size, log: Path) -> None:
        self.size, self.log, self.threads = size, log, int(options.threads)
        self.machine = describe()
        native = {"avx512_bf16", "amx_bf16"} & set(self.machine["flags"])
        self.dtype = options.dtype or ("bfloat16" if native else "float32")
        self.wanted = frozenset(options.parts)
        self.material: Path = options.material
        self.lines: list[table.Line] = []
        self.found: dict[str, Any] = {}

    def say(self, text: str) -> None:
        console.print(text, highlight=False, soft_wrap=True)

    def ask(self, *arguments: str) -> bytes:
        """What a process with torch answers."""
        return list(child("benchmarks.prepare", arguments, b"", self.threads, self.log))[-1]

    def registry(self, base: Base) -> Registry:
        """The prepared state directory, made if need be."""
        size, kind = self.size, Path(base.folder).name[-8:]
        folder = self.material / "scale" / f"{kind}-{size.registered}-{size.whole}"
        counts = str(size.registered), str(size.whole)
        return msgspec.json.decode(self.ask("registry", base.folder, str(folder), *counts), type=Registry)

    def flags(self, base: Base, state_dir: str) -> dict[str, str]:
        adapter = base.shape.adapter_weights(RANK) * WEIGHT_BYTES[self.dtype]
        return {
            "--model": base.folder,
            "--state-dir": state_dir,
            "--dtype": self.dtype,
            "--threads": str(self.threads),
            "--adapter-memory": str(self.size.slots * adapter),
            "--adapter-host-memory": str(self.size.host * adapter),
        }

    async def start_and_list(self, base: Base, registry: Registry, output: IO[bytes]) -> None:
        """Servers without and with adapters, by turns. The first of each makes files and fills caches; not counted."""
        seconds: dict[bool, list[float]] = {False: [], True: []}
        listings: dict[bool, parts.Listing] = {}
        with tempfile.TemporaryDirectory(prefix="loramux-bench-") as empty:
            for full in (False, True) * (1 + self.size.starts):
                flags = self.flags(base, registry.state_dir if full else empty)
                async with parts.open_server(flags, output) as server:
                    seconds[full].append(server.ready_seconds)
                    if full not in listings:
                        names = registry.names if full else ()
                        listings[full] = await parts.listing(server, names, self.size.gets)
        seconds = {full: found[1:] for full, found in seconds.items()}
        self.found["start"] = {"empty": seconds[False], "full": seconds[True]}
        self.found["list"] = {"empty": asdict(listings[False]), "full": asdict(listings[True])}
        if "start" in self.wanted:
            self.lines += table.start_lines(seconds[False], seconds[True], registry.registered)
        if "list" in self.wanted:
            self.lines += table.listing_lines(listings[False], listings[True])

    async def traffic(self, base: Base, registry: Registry, output: IO[bytes]) -> None:
        """What needs a server that answers."""
        size = self.size
        async with parts.open_server(self.flags(base, registry.state_dir), output) as server:
            popular = registry.names[: size.popular]
            if "cold" in self.wanted:
                self.say("loads from disk")
                adapters = range(size.popular, size.whole)
                cold = await parts.cold_loads(server, registry.names, adapters, registry.folders, 2, "cold")
                self.found["cold"] = asdict(cold)
                self.lines += table.cold_lines(cold, folder_bytes(registry.folders[0]))
            if "traffic" in self.wanted:
                self.say("Zipf traffic")
                found = await parts.popular_and_rare(
                    server,
                    popular,
                    few=size.few,
                    requests=size.requests,
                    tokens=size.tokens,
                    at_once=size.at_once,
                    rounds=size.rounds,
                )
                self.found["traffic"] = asdict(found)
                self.lines += table.popular_lines(found, size.few, size.popular, size.slots)
            if "cliff" in self.wanted:
                self.say("more adapters than room")
                found = await parts.cliff(
                    server,
                    popular,
                    slots=size.slots,
                    requests=size.cliff_requests,
                    tokens=size.tokens,
                    rounds=size.rounds,
                )
                self.found["cliff"] = asdict(found)
                self.lines += table.cliff_lines(found, size.slots)

    def seven(self, registry: Registry) -> None:
        """A base of seven billion parameters."""
        memory = rates(self.dtype, self.threads, "cpu", self.log).bandwidth
        disk = read_rate(map(Path, registry.folders), DISK_BYTES)
        computed = compute(disk, memory)
        folder = self.material / "scale"
        answer = self.ask("loads", str(folder), "bfloat16", str(self.size.seven))
        measured = msgspec.json.decode(answer, type=BankLoads)
        self.found["7b"] = {
            "disk_bytes_per_second": disk,
            "memory_bytes_per_second": memory,
            "computed": asdict(computed),
            "measured": asdict(measured),
            "formula": FORMULA,
        }
        self.lines += table.seven_lines(computed, measured, disk, memory)


def folder_bytes(folder: str) -> int:
    """Bytes of a folder's files."""
    return sum(path.stat().st_size for path in Path(folder).iterdir())


async def run(found: Run) -> None:
    """All parts that are wanted."""
    base = prepare("default", found.material, found.threads, found.log)
    found.say(f"adapters for {Path(base.folder).name}: made once, then kept")
    registry = found.registry(base)
    with found.log.open("ab") as output:
        if {"start", "list"} & found.wanted:
            found.say("start-up and lists")
            await found.start_and_list(base, registry, output)
        if {"traffic", "cliff", "cold"} & found.wanted:
            await found.traffic(base, registry, output)
    if "7b" in found.wanted:
        found.say("seven billion parameters")
        found.seven(registry)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer of everything: a trial of a minute or two")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="(default: all)")
    parser.add_argument("--dtype", choices=sorted(WEIGHT_BYTES), help="(default: what loramux would choose here)")
    parser.add_argument("--threads", type=int, default=usable_cpus(), help="(default: affinity and quota)")
    parser.add_argument(
        "--material", type=Path, default=ROOT / "build" / "bench", help="where base and adapters are kept"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="(default: a new file in benchmarks/results)")
    return parser.parse_args(arguments)


def main() -> None:
    """Prepare, measure, report."""
    options = parse()
    RESULTS.mkdir(exist_ok=True)
    options.material.mkdir(parents=True, exist_ok=True)
    stamp = time.strftime("%Y%m%d-%H%M%S")
    size = QUICK if options.quick else Size()
    found = Run(options, size, options.material / f"scale-{stamp}.log")
    found.say(f"{sentence(found.machine)}\nThe servers' own output goes to {found.log}.")
    begin = time.perf_counter()
    asyncio.run(run(found))
    title = f"{found.dtype}, {found.threads} threads, {size.tokens} new tokens per request, rank {RANK}"
    console.print(table.make_table(found.lines, title + (", quick" if options.quick else "")))
    if "7b" in found.wanted:
        found.say(FORMULA)
    made = {
        "machine": found.machine,
        "dtype": found.dtype,
        "threads": found.threads,
        "quick": options.quick,
        "size": asdict(size),
        "seconds": time.perf_counter() - begin,
        "lines": [asdict(line) for line in found.lines],
        **found.found,
    }
    path = options.json or RESULTS / f"scale-{stamp}.json"
    path.write_text(json.dumps(made, indent=2) + "\n")
    found.say(f"Figures: {path}")


if __name__ == "__main__":
    main()
