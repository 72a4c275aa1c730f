"""What a step launched ahead gives on a processor: tokens per second with and without ``--async-scheduling on``.

    make bench-ahead                              # eight rounds, four minutes
    make bench-ahead BENCH_ARGS=--quick           # to see that it runs

Two servers take turns with the same requests, whose answers do not repeat their prompts. Drafts are off in both.
"""

from __future__ import annotations

import argparse
import asyncio
from typing import Any

from rich.table import Table

from loramux_server.host.resources import usable_cpus

from .machine import describe, sentence
from .serving import console, prepare, save
from .speculation import OPEN, TOKENS, parse, speed
from .turns import in_turn, ratio, servers

WAYS = ("off", "on")
PREDICTED = {"1 stream": 0.99, "16 streams": 0.98}
"""Ratios that were expected before it was measured for the first time: the same cores do the same work."""


async def measure(options: argparse.Namespace, base: str) -> list[dict[str, Any]]:
    """All cells: tokens/s of each round, by way."""
    flags = ("--model", base, "--dtype", options.dtype, "--device", "cpu", "--speculate", "off")
    cells: list[dict[str, Any]] = []
    with (options.material / "ahead.log").open("ab") as log:
        async with servers({way: (*flags, "--async-scheduling", way) for way in WAYS}, log) as clients:
            for client in clients.values():
                await speed(client, OPEN["sky"], 1, "warm", 0.0)
            for streams in options.streams:
                found = await in_turn(
                    clients,
                    options.rounds,
                    lambda client, mark: speed(client, OPEN["story"], streams, mark.split()[1], 1.0),  # noqa: B023
                )
                cells.append({"streams": streams, "tokens_per_second": found})
    return cells


def main() -> None:
    """Measure, print the table, write the file."""
    options = parse("ahead", __doc__)
    options.material.mkdir(parents=True, exist_ok=True)
    machine = describe()
    console.print(sentence(machine), highlight=False, soft_wrap=True)
    base = prepare("default", options.material, usable_cpus(), options.material / "ahead.log")
    cells = asyncio.run(measure(options, base.folder))
    table = Table(title=f"{TOKENS} new tokens, ratio of tokens/s, median", title_justify="left")
    for column in ("at once", "on / off", "predicted"):
        table.add_column(column)
    for cell in cells:
        name = f"{cell['streams']} stream{'s' * (cell['streams'] > 1)}"
        cell["ratio"] = ratio(cell["tokens_per_second"], "on", "off")
        table.add_row(name, f"{cell['ratio']:.3f}", str(PREDICTED.get(name, "")))
    console.print(table)
    settings = {"rounds": options.rounds, "tokens": TOKENS, "dtype": options.dtype}
    report = {"machine": machine, "settings": settings, "predicted": PREDICTED, "cells": cells}
    save(options.json, report)


if __name__ == "__main__":
    main()
