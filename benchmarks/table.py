"""What is told in the end: one table, and the few ratios that matter."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.table import Table

from .samples import Figures
from .systems import FROM_ELSEWHERE, PEERS, TITLES
from .workloads import TITLES as WORKLOADS
from .workloads import Cell


@dataclass(frozen=True, slots=True)
class Row:
    """One system on one workload of one base."""

    base: str
    system: str
    cell: Cell
    figures: Figures
    peak_bytes: int
    roofline: float
    """Share of the bound with weights in the compute type."""
    roofline_packed: float
    """Share of the bound with 4-bit linears."""
    agreement: float | None = None
    """Share of tokens equal to the reference system's before they first differ."""


LABELS = ("base", "workload", "system")
COLUMNS = (*LABELS, "tokens/s", "first p50", "p95", "between p50", "p95", "peak", "roofline", "packed", "same")


def make_table(rows: Sequence[Row], title: str) -> Table:
    """Rows in the order given; base and workload stand only where they change."""
    table = Table(title=title, title_justify="left")
    for column in COLUMNS:
        table.add_column(column, justify="left" if column in LABELS else "right", no_wrap=True)
    last: tuple[str, str] | None = None
    for row in rows:
        group = (row.base, row.cell.name)
        if group != last:
            table.add_section()
        table.add_row(*(("", "") if group == last else group), *_cells(row))
        last = group
    return table


def _cells(row: Row) -> tuple[str, ...]:
    f = row.figures
    return (
        TITLES[row.system],
        f"{f.tokens_per_second:.1f}",
        *(_ms(t) for t in (f.first_p50, f.first_p95, f.gap_p50, f.gap_p95)),
        f"{row.peak_bytes / 2**20:.0f} MiB" if row.peak_bytes else "-",
        f"{row.roofline:.0%}",
        f"{row.roofline_packed:.0%}",
        "-" if row.agreement is None else f"{row.agreement:.0%}",
    )


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"


def ratios(rows: Iterable[Row]) -> list[str]:
    """How loramux stands to the best peer, the front to the engine, stacks to the base, and 64 to 16 at once."""
    table = {(r.base, r.cell.kind, r.cell.concurrency, r.system): r.figures for r in rows}
    lines: list[str] = []
    for (base, kind, level, system), ours in table.items():
        if system != "loramux":
            continue
        name = f"{base}, {WORKLOADS[kind]}, {level} at once"
        peers = {s: table[key] for s in (*PEERS, *FROM_ELSEWHERE) if (key := (base, kind, level, s)) in table}
        for peer, theirs in peers.items():
            lines.append(f"{name}: {_times(ours, theirs)} the tokens/s of {TITLES[peer]}")
        if peers:
            first = min(f.first_p50 for f in peers.values())
            lines.append(f"{name}: first token p50 {ours.first_p50 / first:.0%} of the best peer's")
        if (engine := table.get((base, kind, level, "engine"))) is not None:
            cost = 1 - ours.tokens_per_second / engine.tokens_per_second
            lines.append(f"{name}: the front takes {cost:.0%} of the engine's tokens/s")
        if kind != "base" and (plain := table.get((base, "base", level, "loramux"))) is not None:
            cost = 1 - ours.tokens_per_second / plain.tokens_per_second
            lines.append(f"{name}: {cost:.0%} below our own base only")
        if level == 64 and (fewer := table.get((base, kind, 16, "loramux"))) is not None:
            lines.append(f"{name}: {_times(ours, fewer)} the tokens/s of 16 at once")
    return lines


def _times(ours: Figures, theirs: Figures) -> str:
    return f"{ours.tokens_per_second / theirs.tokens_per_second:.2f}x"
