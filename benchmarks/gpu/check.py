"""A lent GPU in one command of at most twelve minutes: its tests, then what its steps are made of, as JSON.

    make gpu-check                                      # writes benchmarks/results/gpu-DATE.json
    python -m benchmarks.gpu.check --device cpu --quick # to see that it runs where there is no GPU

Each part runs in a process of its own with a limit, and is written as soon as it is done. A part that hangs or crashes
costs its own time and nothing else: what it found before is kept, figures as well as the tests that were over. Parts
that the time no longer allows are named as not run.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import IO, Any

from ..machine import describe, sentence
from ..serving import RESULTS, ROOT, console

LIMIT = 700.0
"""Seconds in all."""
TESTS = ("-m", "pytest", "-v", "-rfE", "--tb=short", "-p", "no:cacheprovider")
TENSOR = ("engine_exact", "engine_weights", "engine_drafts", "engine_sampler", "gpu_linear", "engine_routing")
"""Files of tests/tensor that run on the device: every path against transformers and PEFT."""
KEPT = 12_000
"""Characters that are kept of what a part that failed said last."""
WIDTH = "400"
"""Columns of a part's terminal: pytest cuts what a test failed with to fit."""
_TEST = re.compile(r"^(\S+::.*?) (PASSED|FAILED|ERROR|SKIPPED|XFAIL)\b", re.MULTILINE)
"""A test that is over, as pytest -v tells it."""
_REASON = re.compile(r"^(?:FAILED|ERROR) (\S+::.*?) - (.*)", re.MULTILINE)
"""A test that failed, as pytest's summary tells it at the end."""


@dataclass(frozen=True, slots=True)
class Part:
    """One process: pytest, or a module of this package whose ``measure`` gives the figures found so far."""

    name: str
    limit: float
    """Seconds."""
    command: tuple[str, ...] = ()

    def line(self, options: argparse.Namespace) -> list[str]:
        """What to run."""
        if self.command:
            return [sys.executable, "-u", *self.command]
        quick = ["--quick"] if options.quick else []
        return [sys.executable, "-m", "benchmarks.gpu.check", "--part", self.name, "--device", options.device, *quick]

    def found(self, said: str) -> dict[str, Any]:
        """What the part found, from what it said; empty: nothing."""
        if self.command:
            return tests(said)
        complete = [line for line in said.splitlines(keepends=True) if line.startswith("{") and line.endswith("}\n")]
        return {"figures": json.loads(complete[-1])} if complete else {}


def parts(device: str, quick: bool) -> list[Part]:
    """All parts in the order of their use to who reads them."""
    tensor = [f"tests/tensor/test_{name}.py" for name in (TENSOR[-2:-1] if quick else TENSOR)]
    tests = [Part("tests on the device", 210.0, (*TESTS, *tensor, "-m", "not slow and not gpu"))]
    if device == "cuda":
        tests.insert(0, Part("tests of a GPU", 120.0, (*TESTS, "tests/gpu", "-m", "gpu")))
    figures = [("products", 90.0), ("adapters", 60.0), ("base", 90.0), ("steps", 120.0), ("sampling", 60.0)]
    figures += [("training", 120.0), ("mixed", 90.0), ("attention", 40.0)]
    return [*tests, *(Part(name, limit) for name, limit in figures)]


def tests(said: str) -> dict[str, Any]:
    """How many tests passed and so on, and why those that did not failed, as far as pytest came."""
    outcomes = dict(_TEST.findall(said))
    counts = Counter(outcome.lower() for outcome in outcomes.values())
    reasons = dict(_REASON.findall(said))
    failures = {name: reasons.get(name, "") for name, outcome in outcomes.items() if outcome in ("FAILED", "ERROR")}
    return {"summary": ", ".join(f"{n} {outcome}" for outcome, n in counts.items()), "failures": failures | reasons}


def run(part: Part, options: argparse.Namespace, limit: float) -> dict[str, Any]:
    """Run one part: what it found, and where it failed, how and what it said last."""
    begin = time.monotonic()
    environment = {**os.environ, "TEST_DEVICE": options.device, "HF_HUB_OFFLINE": "1", "COLUMNS": WIDTH}
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = subprocess.Popen(
            part.line(options), cwd=ROOT, env=environment, stdout=out, stderr=err, start_new_session=True
        )
        try:
            code = process.wait(limit)
            failed = f"exit code {code}" if code else ""
        except subprocess.TimeoutExpired:
            failed = f"not done after {limit:.0f} s"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # what it started, too
            process.wait()
        said, complaints = _text(out), _text(err)
    result = {"seconds": round(time.monotonic() - begin, 1), **part.found(said)}
    if not failed and not part.command and "figures" not in result:
        failed = "no figures"
    return {**result, "failed": failed, "output": (said + complaints)[-KEPT:]} if failed else result


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")


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
        told = [result[key] for key in ("failed", "summary") if result.get(key)] or ["done"]
        console.print(f"{part.name}: {'; '.join(told)} ({result.get('seconds', 0)} s)", highlight=False, soft_wrap=True)
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

        measure = import_module(f"benchmarks.gpu.{options.part}").measure
        for figures in measure(torch.device(options.device), options.quick):
            print(json.dumps(figures), flush=True)
        return 0
    report = check(options)
    console.print(f"Figures: {options.json}", highlight=False, soft_wrap=True)
    return int(any("failed" in result for result in report["parts"].values()))


if __name__ == "__main__":
    sys.exit(main())
