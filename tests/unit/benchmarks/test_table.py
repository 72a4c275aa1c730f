"""What is told in the end."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO

from rich.console import Console

from benchmarks.samples import Figures
from benchmarks.table import Row, make_table, ratios
from benchmarks.workloads import Cell

FIGURES = Figures(16, 1024, 10.0, 100.0, 0.2, 0.4, 0.05, 1.5)


def row(system: str, rate: float, *, kind: str = "base", level: int = 16, first: float = 0.2) -> Row:
    figures = replace(FIGURES, tokens_per_second=rate, first_p50=first)
    return Row("default", system, Cell(kind, level, 16, 64), figures, 3 << 20, 0.5, 0.25)


def test_the_table_shows_each_workload_once_with_its_systems() -> None:
    out = StringIO()
    rows = [
        row("loramux", 300.0),
        replace(row("peft", 50.0), peak_bytes=0, agreement=0.975),
        row("engine", 9.0, level=1),
    ]
    Console(file=out, width=160).print(make_table(rows, "bfloat16, 2 threads"))
    text = out.getvalue()
    assert (text.count("base@16"), text.count("base@1 ")) == (1, 1)
    ours = next(line for line in text.splitlines() if "loramux over gRPC" in line)
    assert [part.strip() for part in ours.split("│")[1:-1]] == [
        *(
            "default",
            "base@16",
            "loramux over gRPC",
            "300.0",
            "200.0 ms",
            "400.0 ms",
            "50.0 ms",
            "1.50 s",
            "3 MiB",
            "50%",
            "25%",
            "-",
        )
    ]
    peer = next(line for line in text.splitlines() if "PEFT" in line)
    assert [part.strip() for part in peer.split("│")[-5:-1]] == ["-", "50%", "25%", "98%"]


def test_ratios_to_peers_engine_base_and_fewer_at_once() -> None:
    lines = ratios(
        [
            row("loramux", 300.0, first=0.1),
            row("engine", 400.0),
            row("peft", 50.0, first=0.5),
            row("transformers", 150.0, first=0.4),
            row("loramux", 240.0, kind="stacks"),
            row("loramux", 450.0, level=64),
        ]
    )
    assert lines == [
        "default, base only, 16 at once: 6.00x the tokens/s of PEFT generate",
        "default, base only, 16 at once: 2.00x the tokens/s of transformers generate",
        "default, base only, 16 at once: first token p50 25% of the best peer's",
        "default, base only, 16 at once: the front takes 25% of the engine's tokens/s",
        "default, 16 different two-adapter stacks, 16 at once: 20% below our own base only",
        "default, base only, 64 at once: 1.50x the tokens/s of 16 at once",
    ]


def test_without_loramux_there_is_nothing_to_compare() -> None:
    assert ratios([row("peft", 50.0), row("engine", 60.0)]) == []
