"""A lent GPU in one command of at most twelve minutes: its tests, then what its steps are made of, as JSON.

    make gpu-check                                      # writes benchmarks/results/gpu-DATE.json
    python -m benchmarks.gpu.check --device cpu --quick # to see that it runs where there is no GPU

Each part runs in a process of its own with a limit, and is written as soon as it is done: a part that hangs or crashes
costs its own time and nothing else. Parts that the time no longer allows are named as not run.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from ..machine import describe, sentence
from ..serving import RESULTS, ROOT, console

LIMIT = 700.0
"""Seconds in all."""
TESTS = ("-m", "pytest", "-q", "-x", "-p", "no:cacheprovider")
TENSOR = ("engine_exact", "engine_weights", "engine_drafts", "engine_sampler", "gpu_linear", "engine_routing")
"""Files of tests/tensor that run on the device: every path against transformers and PEFT."""


@dataclass(frozen=True, slots=True)
class Part:
    """One process: a command, or a module of this package whose ``measure`` gives figures."""

    name: str
    limit: float
    """Seconds."""
    command: tuple[str, ...] = ()

    def line(self, options: argparse.Namespace) -> list[str]:
        """What to run."""
        if self.command:
            return [sys.executable, *self.command]
        quick = ["--quick"] if options.quick else []
        return [sys.executable, "-m", "benchmarks.gpu.check", "--part", self.name, "--device", options.device, *quick]


def parts(device: str, quick: bool) -> list[Part]:
    """All parts in the order of their use to who reads them."""
    tensor = [f"tests/tensor/test_{name}.py" for name in (TENSOR[-2:-1] if quick else TENSOR)]
    tests = [Part("tests on the device", 210.0, (*TESTS, *tensor, "-m", "not slow and not gpu"))]
    if device == "cuda":
        tests.append(Part("tests of a GPU", 120.0, (*TESTS, "tests/gpu", "-m", "gpu")))
    figures = [("products", 90.0), ("adapters", 60.0), ("steps", 180.0), ("sampling", 60.0), ("training", 120.0)]
    figures += [("mixed", 100.0), ("attention", 40.0)]
    return [*tests, *(Part(name, limit) for name, limit in figures)]


def run(part: Part, options: argparse.Namespace, limit: float) -> dict[str, Any]:
    """Run one part; what it gave, or how it failed and what it said last."""
    begin = time.monotonic()
    environment = {**os.environ, "TEST_DEVICE": options.device, "HF_HUB_OFFLINE": "1"}
    try:
        done = subprocess.run(
            part.line(options), cwd=ROOT, env=environment, capture_output=True, text=True, timeout=limit, check=False
        )
    except subprocess.TimeoutExpired as error:
        said = error.stdout.decode(errors="replace") if isinstance(error.stdout, bytes) else error.stdout or ""
        return {"failed": f"not done after {limit:.0f} s", "output": said[-2000:]}
    result: dict[str, Any] = {"seconds": round(time.monotonic() - begin, 1)}
    if done.returncode:
        return {**result, "failed": f"exit code {done.returncode}", "output": (done.stdout + done.stderr)[-4000:]}
    last = done.stdout.strip().rpartition("\n")[2]
    return {**result, "summary": last} if part.command else {**result, "figures": json.loads(last)}


def check(options: argparse.Namespace) -> dict[str, Any]:
    """All parts that fit into the time; the file is written after each."""
    begin = time.monotonic()
    report: dict[str, Any] = {"machine": describe(), "device": options.device, "parts": {}}
    console.print(sentence(report["machine"]), highlight=False, soft_wrap=True)
    for part in parts(options.device, options.quick):
        left = options.limit - (time.monotonic() - begin)
        result = run(part, options, min(part.limit, left)) if left > 10 else {"failed": "not run: no time was left"}
        report["parts"][part.name] = result
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(report, indent=2) + "\n")
        told = result.get("failed") or result.get("summary") or "done"
        console.print(f"{part.name}: {told} ({result.get('seconds', 0)} s)", highlight=False, soft_wrap=True)
        if "failed" in result:
            console.print(result.get("output", ""), highlight=False, soft_wrap=True, markup=False)
    return report


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.check", description=(__doc__ or "").partition("\n")[0]
    )
    add = parser.add_argument
    add("--device", choices=("cuda", "cpu"), default="cuda", help="(default: cuda)")
    add("--quick", action="store_true", help="a few figures: to see that it runs")
    add("--limit", type=float, default=LIMIT, metavar="SECONDS", help=f"for all of it (default: {LIMIT:.0f})")
    add("--part", help=argparse.SUPPRESS)
    add("--json", type=Path, metavar="FILE", help="(default: a new one in results)")
    options = parser.parse_args(arguments)
    options.json = options.json or RESULTS / f"gpu-{time.strftime('%Y%m%d-%H%M%S')}.json"
    return options


def main() -> int:
    """Check, and give 1 where a part failed."""
    options = parse()
    if options.part:
        import torch

        print(
            json.dumps(
                import_module(f"benchmarks.gpu.{options.part}").measure(torch.device(options.device), options.quick)
            )
        )
        return 0
    report = check(options)
    console.print(f"Figures: {options.json}", highlight=False, soft_wrap=True)
    return int(any("failed" in result for result in report["parts"].values()))


if __name__ == "__main__":
    sys.exit(main())
