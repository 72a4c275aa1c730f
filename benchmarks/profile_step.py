"""Where the time of a decode step goes: the engine's own loop under torch's profiler, rows grouped.

    python -m benchmarks.profile_step stacks@16 --threads 2 --dtype bfloat16

Times are of the engine's thread: an operator's own time, without those that it calls. What no operator accounts for
is Python (and the profiler's own cost: compare ``wall`` with ``unprofiled``).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Table

from loramux_server.host.resources import usable_cpus

from .job import Job
from .material import BASES, prepare
from .systems.engine import InlineSystem, settings_of, versions_of
from .workloads import cells

GROUPS: Mapping[str, tuple[str, ...]] = {
    "gemm": (
        "mkldnn::_linear",
        "aten::linear",
        "aten::addmm",
        "aten::mm",
        "aten::bmm",
        "aten::matmul",
        "aten::baddbmm",
    ),
    "attention": ("scaled_dot_product", "_flash_attention", "aten::softmax", "aten::_softmax"),
    "kv": ("aten::index_copy", "aten::index_select", "aten::index_put"),
    "norm": ("rms_norm", "layer_norm", "aten::rsqrt", "aten::mean", "aten::pow"),
    "sampling": (
        "aten::max",
        "aten::argmax",
        "aten::isfinite",
        "aten::topk",
        "log_softmax",
        "aten::_local_scalar_dense",
    ),
}
"""Group -> parts of operators' names; the first that matches counts. All other operators are ``other``."""


def group_of(operator: str) -> str:
    """The group of an operator."""
    return next((group for group, parts in GROUPS.items() if any(part in operator for part in parts)), "other")


def grouped(rows: Iterable[tuple[str, float]], wall: float) -> dict[str, float]:
    """Seconds by group, largest first, from (operator, own seconds); the rest of ``wall`` is ``python``."""
    found: dict[str, float] = {}
    for operator, seconds in rows:
        group = group_of(operator)
        found[group] = found.get(group, 0.0) + seconds
    found["python"] = max(0.0, wall - sum(found.values()))
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def main() -> None:
    """Bring the sequences to where all decode, then profile some steps."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.profile_step", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("workload", nargs="?", default="base@16", help="KIND@N (default: base@16)")
    parser.add_argument("--base", choices=BASES, default=BASES[0])
    parser.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"))
    parser.add_argument("--threads", type=int, default=usable_cpus())
    parser.add_argument("--steps", type=int, default=20, help="profiled (default: 20)")
    parser.add_argument("--material", type=Path, default=Path(__file__).parents[1] / "build" / "bench")
    parser.add_argument("--rows", type=int, default=12, help="operators to list (default: 12)")
    options = parser.parse_args()
    try:
        cell, *more = cells([options.workload], 1, 4 * options.steps + 64)
    except ValueError as error:
        parser.error(str(error))
    if more:
        parser.error("workload must name one KIND@N")
    base = prepare(options.base, options.material)
    from torch.profiler import ProfilerActivity, profile

    with tempfile.TemporaryDirectory(prefix="loramux-bench-") as scratch:
        job = Job("inline", base, (cell,), options.dtype, options.threads, scratch)
        system = InlineSystem(settings_of(job), versions_of(job))
        system.begin(cell.asks()[: cell.concurrency])
        plain = timed(system, options.steps)
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            wall = timed(system, options.steps)
        system.close()
    rows = [(row.key, row.self_cpu_time_total / 1e6 / options.steps) for row in profiler.key_averages()]
    show(
        rows, wall, plain, f"{base.name} {cell.name}, {system.facts['dtype']}, {options.threads} threads", options.rows
    )


def timed(system: InlineSystem, steps: int) -> float:
    """Seconds per turn of the engine."""
    begin = time.perf_counter()
    for _ in range(steps):
        system.turn()
    return (time.perf_counter() - begin) / steps


def show(rows: list[tuple[str, float]], wall: float, plain: float, title: str, most: int) -> None:
    """Print the groups, and the operators that take the most."""
    table = Table(title=f"{title}: {1000 * wall:.1f} ms a step, unprofiled {1000 * plain:.1f}", title_justify="left")
    for column in ("group", "operator", "ms", "share"):
        table.add_column(column, justify="left" if column in ("group", "operator") else "right", no_wrap=True)
    for group, seconds in grouped(rows, wall).items():
        table.add_row(group, "", f"{1000 * seconds:.2f}", f"{seconds / wall:.0%}")
    table.add_section()
    for operator, seconds in sorted(rows, key=lambda row: -row[1])[:most]:
        table.add_row(group_of(operator), operator, f"{1000 * seconds:.2f}", f"{seconds / wall:.0%}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
