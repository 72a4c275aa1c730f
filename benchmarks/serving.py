"""loramux beside its peers: same weights, same prompts, same threads, one run, one table.

    make bench-serving                                  # everything: an hour or two on two cores
    make bench-serving BENCH_ARGS=--quick               # about two minutes
    python -m benchmarks.serving --workloads base@16 stacks --systems loramux engine peft --dtype float32
    python -m benchmarks.serving --llama-server PATH --vllm PATH

Each system runs in a process of its own, one after the other. Every request asks for the same number of new tokens,
greedily. A workload is KIND@CONCURRENCY, and either half of that names several. The table goes to standard output,
all figures and the machine to a JSON file.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console

from loramux_server.host.resources import usable_cpus

from .job import Base, CellResult, Job, Line
from .machine import DEVICES, describe, sentence
from .material import BASES
from .roofline import FORMULA, NF4_BYTES, Load, Rates, least_seconds
from .samples import agreement
from .systems import FROM_ELSEWHERE, OURS, PEERS, SYSTEMS, TITLES
from .table import Row, make_table, ratios
from .workloads import RANK, Cell, cells

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
QUICK = ("base@1", "base@16", "adapters@16", "stacks@16")
REFERENCE = ("transformers", "peft", "engine", "inline", "loramux")
"""Whose answers the others' are compared with: the first of these that ran."""
WEIGHT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}

console = Console()
if not console.is_terminal:
    console.width = 150  # a file or a pipe would get 80, too few for the table


def save(path: Path, report: Mapping[str, Any]) -> None:
    """Write a report as JSON, and say where."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2) + "\n")
    console.print(f"Figures: {path}", highlight=False, soft_wrap=True)


@dataclass(slots=True)
class Report:
    """All that was found. ``results[base][system]`` are results by workload."""

    machine: dict[str, Any]
    rates: Rates
    results: dict[str, dict[str, dict[str, CellResult]]] = field(default_factory=dict)
    facts: dict[str, dict[str, str]] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)


def child(module: str, arguments: Sequence[str], stdin: bytes, threads: int, log: Path) -> Iterator[bytes]:
    """Lines that a process of ours writes; its errors go to ``log``. Raises RuntimeError if it fails."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "0"}
    with log.open("ab") as errors:
        command = [sys.executable, "-m", module, *arguments]
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(stdin)
            process.stdin.close()
            yield from process.stdout
            if process.wait() != 0:
                raise RuntimeError(f"{module} ended with {process.returncode}; see {log}")
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()


def prepare(name: str, folder: Path, threads: int, log: Path) -> Base:
    """A base with its adapters, in a process of its own because that needs torch."""
    lines = list(child("benchmarks.prepare", ["base", name, str(folder)], b"", threads, log))
    return msgspec.json.decode(lines[-1], type=Base)


def rates(dtype: str, threads: int, device: str, log: Path) -> Rates:
    """How fast this machine is, measured in a process of its own. Done before and after all else, the best counts."""
    lines = list(child("benchmarks.prepare", ["rates", dtype, str(threads), device], b"", threads, log))
    return msgspec.json.decode(lines[-1], type=Rates)


def run_system(job: Job, report: Report, log: Path) -> None:
    """All workloads of one system on one base."""
    title = f"{TITLES[job.system]} on {job.base.name}"
    console.print(f"[bold]{title}[/bold]", highlight=False)
    found = report.results.setdefault(job.base.name, {}).setdefault(job.system, {})
    try:
        for raw in child("benchmarks.worker", [], msgspec.json.encode(job), job.threads, log):
            line = msgspec.json.decode(raw, type=Line)
            if line.result is not None:
                found[line.result.cell.name] = line.result
                rate = line.result.figures.tokens_per_second
                console.print(f"  {line.result.cell.name}: {rate:.1f} tokens/s", highlight=False)
            elif line.left_out:
                report.left_out.append(f"{title}, {line.left_out}: {line.note}")
            report.facts.setdefault(title, {}).update(line.facts)
    except RuntimeError as error:
        report.left_out.append(f"{title}: {error}")


def make_rows(report: Report, bases: Sequence[Base], wanted: Sequence[Cell], dtype: str) -> list[Row]:
    """The table's rows: by base, workload, then system."""
    rows = []
    for base in bases:
        results = report.results.get(base.name, {})
        for cell in wanted:
            here = {s: r[cell.name] for s, r in results.items() if cell.name in r}
            reference = next((here[s] for s in REFERENCE if s in here), None)
            rows += [
                make_row(base, system, here[system], reference, report.rates, dtype)
                for system in SYSTEMS
                if system in here
            ]
    return rows


def make_row(
    base: Base, system: str, result: CellResult, reference: CellResult | None, rates: Rates, dtype: str
) -> Row:
    """One row, with its share of the roofline."""
    cell = result.cell
    load = Load(
        requests=cell.requests,
        concurrency=cell.concurrency,
        prompt_tokens=result.prompt_tokens / cell.requests,
        new_tokens=cell.tokens,
        distinct=cell.distinct,
        depth=cell.depth,
        rank=RANK,
    )
    width, seconds = WEIGHT_BYTES[dtype], result.figures.seconds
    comparable = reference is not None and reference is not result and any(result.answers)
    return Row(
        base=base.name,
        system=system,
        cell=cell,
        figures=result.figures,
        peak_bytes=result.peak_bytes,
        roofline=least_seconds(base.shape, load, rates, width) / seconds,
        roofline_packed=least_seconds(base.shape, load, rates, width, NF4_BYTES) / seconds,
        agreement=agreement(reference.answers, result.answers) if comparable and reference is not None else None,
    )


def warnings(report: Report) -> list[str]:
    """Where the systems were not asked the same."""
    found = []
    for base, systems in report.results.items():
        for name in {cell for results in systems.values() for cell in results}:
            counts = {s: r[name].prompt_tokens for s, r in systems.items() if name in r}
            if len(set(counts.values())) > 1:
                found.append(f"{base}, {name}: prompts of unlike length, {counts}")
    return sorted(found)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serving", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--quick", action="store_true", help=f"about two minutes: default base, {', '.join(QUICK)}")
    parser.add_argument("--bases", nargs="+", choices=BASES, help=f"(default: {' '.join(BASES[:2])})")
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=[*OURS, *PEERS], help="(default: all of ours)")
    parser.add_argument(
        "--workloads", nargs="+", default=[], metavar="KIND@N", help="base@16, stacks, @64 (default: all)"
    )
    parser.add_argument("--dtype", choices=sorted(WEIGHT_BYTES), help="(default: what loramux would choose here)")
    parser.add_argument("--device", choices=DEVICES, default=DEVICES[0], help=f"(default: {DEVICES[0]})")
    parser.add_argument("--threads", type=int, default=usable_cpus(), help="(default: affinity and quota)")
    parser.add_argument("--tokens", type=int, metavar="N", help="new tokens per request (default: 64; quick: 16)")
    parser.add_argument("--rounds", type=int, metavar="N", help="requests per place (default: 2; quick: 1)")
    parser.add_argument("--llama-server", metavar="PATH|URL", help="also measure llama.cpp (see systems/llama.py)")
    parser.add_argument("--vllm", metavar="PATH|URL", help="also measure vLLM (see systems/vllm.py)")
    parser.add_argument(
        "--material", type=Path, default=ROOT / "build" / "bench", help="where bases and adapters are kept"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="(default: a new file in benchmarks/results)")
    options = parser.parse_args()
    options.bases = options.bases or BASES[: 1 if options.quick else 2]
    options.workloads = options.workloads or (QUICK if options.quick else [])
    options.tokens = options.tokens or (16 if options.quick else 64)
    options.rounds = options.rounds or (1 if options.quick else 2)
    if options.tokens < 2 or options.rounds < 1 or options.threads < 1:
        parser.error("--tokens must be at least 2, --rounds and --threads at least 1")
    try:
        options.cells = cells(options.workloads, options.rounds, options.tokens)
    except ValueError as error:
        parser.error(str(error))
    options.targets = {s: getattr(options, s.replace("-", "_")) or "" for s in FROM_ELSEWHERE}
    chosen = {*options.systems, *(s for s, target in options.targets.items() if target)}
    if missing := [s for s in FROM_ELSEWHERE if s in chosen and not options.targets[s]]:
        parser.error(f"--{missing[0]} must say where that system is")
    options.systems = [s for s in SYSTEMS if s in chosen]
    return options


def main() -> None:
    """Prepare, measure one system after the other, report."""
    options = parse()
    machine = describe()
    RESULTS.mkdir(exist_ok=True)
    options.material.mkdir(parents=True, exist_ok=True)
    stamp = time.strftime("%Y%m%d-%H%M%S")
    log = options.material / f"serving-{stamp}.log"
    console.print(f"{sentence(machine)}\nThe systems' own output goes to {log}.", highlight=False, soft_wrap=True)
    native = options.device != "cpu" or {"avx512_bf16", "amx_bf16"} & set(machine["flags"])
    dtype = options.dtype or ("bfloat16" if native else "float32")
    bases = [prepare(name, options.material, options.threads, log) for name in options.bases]
    report = Report(machine, rates(dtype, options.threads, options.device, log))
    path = options.json or RESULTS / f"serving-{stamp}.json"
    for base in bases:
        for system in options.systems:
            with tempfile.TemporaryDirectory(prefix="loramux-bench-") as scratch:
                target = options.targets.get(system, "")
                job = Job(system, base, tuple(options.cells), dtype, options.threads, scratch, options.device, target)
                run_system(job, report, log)
            # After each, for a run that is cut off.
            write(path, report, make_rows(report, bases, options.cells, dtype), dtype, options)
    report.rates = report.rates.best(rates(dtype, options.threads, options.device, log))
    rows = make_rows(report, bases, options.cells, dtype)
    show(report, rows, f"{options.device}, {dtype}, {options.threads} threads, {options.tokens} new tokens per request")
    write(path, report, rows, dtype, options)
    console.print(f"Figures: {path}", highlight=False, soft_wrap=True)


def show(report: Report, rows: Sequence[Row], title: str) -> None:
    """Print everything."""
    console.print(make_table(rows, title))
    for line in ratios(rows):
        console.print(line, highlight=False, soft_wrap=True)
    bandwidth, operations = report.rates.bandwidth / 1e9, report.rates.operations / 1e9
    console.print(f"\n{FORMULA}\nMeasured here: {bandwidth:.1f} GB/s, {operations:.0f} GF/s.", highlight=False)
    for title, facts in report.facts.items():
        console.print(f"{title}: {', '.join(f'{k} {v}' for k, v in facts.items())}", highlight=False, soft_wrap=True)
    for line in report.left_out:
        console.print(f"Left out: {line}", highlight=False, soft_wrap=True)
    for line in warnings(report):
        console.print(f"[red]Not the same requests:[/red] {line}", highlight=False, soft_wrap=True)


def write(path: Path, report: Report, rows: Sequence[Row], dtype: str, options: argparse.Namespace) -> None:
    """All figures as JSON."""
    made = {
        "machine": report.machine,
        "rates": asdict(report.rates),
        "formula": FORMULA,
        "dtype": dtype,
        "device": options.device,
        "threads": options.threads,
        "rows": [asdict(row) for row in rows],
        "ratios": ratios(rows),
        "facts": report.facts,
        "left_out": report.left_out,
        "warnings": warnings(report),
    }
    path.write_text(json.dumps(made, indent=2) + "\n")


if __name__ == "__main__":
    main()
