"""``python -m tests.fuzz``: fuzz all targets, or some, each in a process of its own, and write down how it went."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .target import CORPUS, Target

FLAT = 64 << 20
"""Bytes that resident memory may grow by: a coverage-guided fuzzer keeps the inputs that it finds."""


def targets() -> dict[str, Callable[[], Target]]:
    """All targets by name. Making one may start a server."""
    from . import readers
    from .door import door
    from .engine_socket import engine_socket

    names = ("frames", "credentials", "adapters", "datasets", "templates", "formats")
    return {name: getattr(readers, name) for name in names} | {"door": door, "engine": engine_socket}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", help="all where none is given")
    parser.add_argument("--inputs", type=int, default=10**12, help="of each target")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each target")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, help="write a report of JSON here")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    known = targets()
    if given.child:
        from .campaign import encode, run

        (name,) = given.targets
        run(known[name], given.inputs, given.seconds, given.seed, lambda record: print("\n" + encode(record).decode()))
        return 0
    records, failed = [], False
    for name in given.targets or known:
        record = fuzz(name, given.inputs, given.seconds, given.seed)
        records.append(record)
        grown = record["rss_after"] - record["rss_before"] if record["rss_before"] else 0
        took = f"{record['inputs']:>9} inputs {record['seconds']:>7} s"
        print(f"{name:12} {took}, slowest {record['slowest']:.2f} s, grown {grown / 1e6:.1f} MB", flush=True)
        if record["finding"]:
            print(record["finding"])
            place = CORPUS / name / f"found-{int(time.time())}"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(bytes.fromhex(record["input"]))
            print(f"the input is kept in {place}")
        failed = failed or bool(record["finding"]) or grown > FLAT
    if given.out:
        machine = {
            "machine": platform.machine(),
            "cpus": os.cpu_count(),
            "python": platform.python_version(),
        }
        total = sum(record["inputs"] for record in records)
        given.out.write_text(json.dumps({"inputs": total, "machine": machine, "targets": records}, indent=2) + "\n")
    return int(failed)


def fuzz(name: str, inputs: int, seconds: float, seed: int) -> dict[str, Any]:
    """Fuzz one target in a process of its own; gives its record. A process that dies is a finding too."""
    limits = ("--inputs", str(inputs), "--seconds", str(seconds), "--seed", str(seed))
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", name, "--child", *limits], capture_output=True, text=True, check=False
    )
    for line in reversed(done.stdout.splitlines()):
        if line.startswith('{"target"'):
            return dict(json.loads(line))
    words = f"exit status {done.returncode}\n{done.stdout[-1500:]}\n{done.stderr[-1500:]}"
    nothing = {"rss_before": 0, "rss_after": 0, "finding": words, "input": ""}
    return {"target": name, "inputs": 0, "seconds": 0.0, "slowest": 0.0, **nothing}


if __name__ == "__main__":
    sys.exit(main())
