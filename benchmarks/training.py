"""loramux's training beside TRL's: same weights, rows, order, settings, threads and precision, one run, one table.

    make bench-training                                 # everything, which takes long
    make bench-training BENCH_ARGS=--quick              # a few steps of each, to see that it runs
    python -m benchmarks.training --dtypes float32 --layers all --systems loramux trl

Needs the extra ``bench`` (``pip install -e '.[bench]'``). Every system trains in a process of its own, one after the
other: a server without requests that gets its job over gRPC, the same server with several jobs queued at once, and
TRL's SFTTrainer with its defaults and without activation checkpointing. Data: a shipped tenant's training rows.

tokens/s are input tokens without padding, from the begin of the first step to the end of the last. Held-out accuracy
is that of the adapters after every N-th step, asked after the measuring with real greedy answers by one loramux
server, for all systems alike; a time to an accuracy counts from when the job was asked for, and no evaluation is in
it. A server gives no adapters of the way there, so they come from a second run of its trainer in a process of its
own, which is the same run: should their losses differ, that is told. Memory is the largest resident size of all of a
system's processes while they train.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec

from loramux_server.host.resources import usable_cpus
from loramux_server.telemetry import logs
from tools.make_adapters import FACTS
from tools.make_data import DATA, load_tenants
from tools.measure_adapters import HELD_OUT, measure_tenant, server

from .goals import as_json
from .machine import DEVICES, describe, sentence
from .serving import RESULTS, ROOT, child, console, prepare
from .train_job import PEERS, SYSTEMS, TITLES, TrainJob, TrainResult, apart, tokens_per_second
from .training_table import Accuracy, Row, goals, make_row, make_table

QUICK_STEPS = 4
LAYERS = ("all", "15-29")
SAME = 0.02
"""Losses of the server's run and its repetition may differ by this much, relatively, before it is told."""
TRAINED = ("loramux", "loramux-jobs", "trl", "trl-plain")


@dataclass(slots=True)
class Report:
    """All that was found."""

    machine: dict[str, Any]
    rows: list[Row] = field(default_factory=list)
    curves: list[dict[str, Any]] = field(default_factory=list)
    facts: dict[str, dict[str, str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def run_job(job: TrainJob, log: Path) -> TrainResult:
    """Train in a process of its own. Raises RuntimeError when that fails."""
    lines = list(child("benchmarks.trainers", [], msgspec.json.encode(job), job.threads, log))
    return msgspec.json.decode(lines[-1], type=TrainResult)


def score(saved: Mapping[int, str], options: argparse.Namespace, dtype: str) -> Accuracy:
    """Held-out accuracy of adapters by step, asked of one server."""
    tenant = next(t for t in load_tenants() if t.name == options.tenants[0])
    parts = HELD_OUT[-1:] if options.quick else HELD_OUT
    found: dict[int, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder, server(None, Path(folder), dtype) as client:  # type: ignore[arg-type]
        for step, adapter in sorted(saved.items()):
            name = f"step-{step}"
            client.adapters.upload(name, adapter)
            shares = measure_tenant(client, tenant, {name: 1.0}, parts)
            found[step] = {what: share.hits / share.of for what, share in shares.items()}
    return found


def run_system(job: TrainJob, layers: str, options: argparse.Namespace, report: Report, log: Path) -> None:
    """One system with one set of settings: train, repeat for the adapters where needed, ask, write down."""
    title = f"{TITLES[job.system]}, {job.dtype}, layers {layers}"
    try:
        result = run_job(job, log)
        console.print(f"{title}: {tokens_per_second(result.jobs):.0f} tokens/s", highlight=False)
        report.facts[title] = result.facts
        saved = result.saved
        if job.system == "loramux" and job.every:
            again = Path(job.scratch) / "again"
            again.mkdir()
            repeated = run_job(replace(job, system="direct", scratch=str(again)), log)
            if (off := apart(result.jobs[0], repeated.jobs[0])) > SAME:
                report.notes.append(f"{title}: losses of the repetition differ by up to {off:.1%}")
            saved = repeated.saved | saved
        accuracy = score(saved, options, job.dtype) if job.system != "loramux-jobs" and job.every else {}
    except RuntimeError as error:
        report.notes.append(f"{title} left out: {error}")
        console.print(f"[red]{title}: {error}[/red]", highlight=False, soft_wrap=True)
        return
    report.rows.append(make_row(job.dtype, layers, job.system, result, accuracy))
    curve = {"system": job.system, "dtype": job.dtype, "layers": layers, "accuracy": accuracy}
    report.curves.append({**curve, "jobs": [asdict(steps) for steps in result.jobs]})


def layer_numbers(text: str) -> tuple[int, ...] | None:
    """``all`` is None, ``15-29`` is 15 to 29. Raises ValueError for anything else."""
    if text == "all":
        return None
    first, dash, last = text.partition("-")
    numbers = tuple(range(int(first), int(last if dash else first) + 1))
    if not numbers:
        raise ValueError(f"{text!r} names no layers")
    return numbers


def write(path: Path, report: Report, options: argparse.Namespace) -> None:
    """All figures as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    made = {
        "machine": report.machine,
        "device": options.device,
        "threads": options.threads,
        "quick": options.quick,
        "tenants": options.tenants,
        "recipe": {**FACTS, "layers": options.layers, "max_steps": options.steps},
        "rows": [asdict(row) for row in report.rows],
        "goals": as_json(goals(report.rows)),
        "facts": report.facts,
        "notes": report.notes,
        "curves": report.curves,
    }
    path.write_text(json.dumps(made, indent=2) + "\n")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    names = [t.name for t in load_tenants()]
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training", description=(__doc__ or "").partition("\n")[0]
    )
    add = parser.add_argument
    add("--quick", action="store_true", help=f"{QUICK_STEPS} steps, upper layers, one type: to see that it runs")
    add("--dtypes", nargs="+", choices=("float32", "bfloat16"), help="(default: both)")
    add("--layers", nargs="+", metavar="all|M-N", help=f"(default: {' '.join(LAYERS)})")
    add("--systems", nargs="+", choices=SYSTEMS, default=TRAINED, help=f"(default: {' '.join(TRAINED)})")
    add("--tenants", nargs="+", choices=names, help="whose rows: the first alone, all of them at once")
    add("--steps", type=int, metavar="N", help="stop after N steps (default: the recipe's four epochs)")
    add("--every", type=int, metavar="N", help="steps between two adapters that are asked (default: 6; 0: none)")
    add("--device", choices=DEVICES, default=DEVICES[0], help=f"(default: {DEVICES[0]})")
    add("--threads", type=int, default=usable_cpus(), help="(default: affinity and quota)")
    add("--cpu-weights", choices=("auto", "packed", "unpacked"), default="auto", help="of loramux (default: auto)")
    add("--activation-memory", type=int, metavar="BYTES", help="of loramux (default: the server's; 0: none kept)")
    add("--material", type=Path, default=ROOT / "build" / "bench", help="where the base is kept")
    add("--json", type=Path, metavar="FILE", help="(default: a new file in benchmarks/results)")
    options = parser.parse_args(arguments)
    options.dtypes = options.dtypes or (["bfloat16"] if options.quick else ["float32", "bfloat16"])
    options.layers = options.layers or (LAYERS[1:] if options.quick else LAYERS)
    options.tenants = options.tenants or ["acme-bikes", *(n for n in names if n != "acme-bikes")][:4]
    options.steps = options.steps or (QUICK_STEPS if options.quick else None)
    if options.every is None:
        options.every = QUICK_STEPS if options.quick else 6
    try:
        options.numbers = [layer_numbers(text) for text in options.layers]
    except ValueError as error:
        parser.error(f"--layers: {error}")
    if options.threads < 1 or options.every < 0 or (options.steps or 1) < 1:
        parser.error("--threads and --steps must be at least 1, --every at least 0")
    return options


def main() -> None:
    """Train with one system after the other, ask, report."""
    options = parse()
    if set(PEERS) & set(options.systems) and find_spec("trl") is None:
        sys.exit(
            "TRL is not installed: pip install -e '.[bench]', or measure without it: --systems loramux loramux-jobs"
        )
    logs.configure("warning", "console")  # of the servers that answer questions in this process
    report = Report(describe())
    options.material.mkdir(parents=True, exist_ok=True)
    stamp = time.strftime("%Y%m%d-%H%M%S")
    log = options.material / f"training-{stamp}.log"
    console.print(
        f"{sentence(report.machine)}\nThe systems' own output goes to {log}.", highlight=False, soft_wrap=True
    )
    base = prepare("default", options.material, options.threads, log)
    data = tuple(str(DATA / "messages" / name / "train.jsonl") for name in options.tenants)
    recipe = {key: FACTS[key] for key in ("rank", "alpha", "learning_rate", "epochs", "batch_size")}
    path = options.json or RESULTS / f"training-{stamp}.json"
    for dtype in options.dtypes:
        for layers, numbers in zip(options.layers, options.numbers, strict=True):
            for system in options.systems:
                with tempfile.TemporaryDirectory(prefix="loramux-bench-") as scratch:
                    job = TrainJob(
                        system=system,
                        base=base.folder,
                        data=data if system == "loramux-jobs" else data[:1],
                        dtype=dtype,
                        threads=options.threads,
                        scratch=scratch,
                        max_steps=options.steps,
                        layers=numbers,
                        every=options.every,
                        cpu_weights=options.cpu_weights,
                        activation_memory=options.activation_memory,
                        device=options.device,
                        **recipe,
                    )
                    run_system(job, layers, options, report, log)
                write(path, report, options)  # after each: an hour's figures are not lost with the last one's
    console.print(make_table(report.rows, f"{options.tenants[0]}, {options.device}, {options.threads} threads"))
    for line in (*goals(report.rows), *report.notes):
        console.print(str(line), highlight=False, soft_wrap=True)
    for title, facts in report.facts.items():
        console.print(f"{title}: {', '.join(f'{k} {v}' for k, v in facts.items())}", highlight=False, soft_wrap=True)
    console.print(f"Figures: {path}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
