"""What drafts give: answers that repeat their prompt, and answers that do not, with and without ``--speculate ngram``.

    make bench-speculation                              # eight rounds, six minutes
    make bench-speculation BENCH_ARGS=--quick           # to see that it runs
    python -m benchmarks.speculation --streams 1 16 --rounds 4

Two servers take turns with the same requests. Goals: one stream of text that repeats its prompt is at least 1.8
times as fast, and no cell is slower than 0.97 times.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from loramux import AsyncClient
from loramux_server.host.resources import usable_cpus

from .goals import Goal, as_json
from .machine import describe, sentence
from .serving import RESULTS, ROOT, console, prepare, save
from .turns import in_turn, ratio, servers

WAYS = ("off", "ngram")
PREDICTED = {"repeats, 1 stream": 2.0, "open, 1 stream": 0.99}
"""What was expected before it was measured for the first time."""
FASTER, NEVER_BELOW = 1.8, 0.97
GOODS = [("bicycle lamp", 12.5), ("helmet", 39.0), ("lock", 22.0), ("bell", 6.5), ("pump", 18.0), ("tyre", 27.5)]
REPEATS = {
    "JSON": "Copy this JSON and change the price of the helmet to 41.0:\n"
    + json.dumps([{"id": i, "name": name, "price": price} for i, (name, price) in enumerate(GOODS)], indent=1),
    "code": 'Repeat this code:\n```python\ndef area(width, height):\n    """Area of a rectangle."""\n'
    '    return width * height\n\n\ndef perimeter(width, height):\n    """Perimeter of a rectangle."""\n'
    "    return 2 * (width + height)\n```",
    "quote": 'Repeat the text word for word: "The harbour town wakes slowly. Fishing boats come back before six, and'
    " the baker on the quay opens at seven. By eight the first ferry leaves for the island, and the children cross the"
    ' bridge. At nine the market opens, and the harbour is loud until noon."',
}
OPEN = {
    "sky": "Explain in simple words why the sky is blue.",
    "note": "Write a short note that thanks a neighbour for watering the plants.",
    "story": "Tell a story about a lighthouse keeper and a storm.",
}
TOKENS = 128


async def speed(client: AsyncClient, text: str, streams: int, mark: str, temperature: float) -> float:
    """Tokens per second of so many answers to one prompt at once, each a little different in its prompt."""
    begin = time.perf_counter()
    answers = await asyncio.gather(
        *(
            client.generate(
                messages=[{"role": "user", "content": f"({mark}, {number}) {text}"}],
                max_tokens=TOKENS,
                temperature=temperature,
                seed=number,
            )
            for number in range(streams)
        )
    )
    return sum(answer.usage.completion_tokens for answer in answers) / (time.perf_counter() - begin)


async def measure(options: argparse.Namespace, base: str) -> list[dict[str, Any]]:
    """All cells: tokens/s of each round, by way."""
    flags = ("--model", base, "--dtype", options.dtype, "--device", "cpu")
    cells: list[dict[str, Any]] = []
    texts = [("repeats", name, text, 0.0) for name, text in REPEATS.items()]
    # At random an answer repeats itself least.
    texts += [("open", name, text, 1.0) for name, text in OPEN.items()]
    log = (options.material / "speculation.log").open("ab")
    with log:
        async with servers({way: (*flags, "--speculate", way) for way in WAYS}, log) as clients:
            for client in clients.values():
                await speed(client, OPEN["sky"], 1, "warm", 0.0)
            for streams in options.streams:
                for kind, name, text, temperature in texts:

                    async def once(client: AsyncClient, mark: str) -> float:
                        # The same prompts for both: a mark by round alone.
                        return await speed(client, text, streams, mark.split()[1], temperature)  # noqa: B023

                    found = await in_turn(clients, options.rounds, once)
                    cells.append({"kind": kind, "text": name, "streams": streams, "tokens_per_second": found})
                    console.print(f"{kind}, {name}, {streams} at once: {ratio(found, 'ngram', 'off'):.2f}x")
    return cells


def goals(cells: Sequence[dict[str, Any]]) -> list[Goal]:
    """Each cell beside its bound."""
    made = []
    for cell in cells:
        fast = cell["kind"] == "repeats" and cell["streams"] == 1
        what = f"{cell['kind']}, {cell['text']}, {cell['streams']} at once"
        made.append(Goal(what, ratio(cell["tokens_per_second"], "ngram", "off"), FASTER if fast else NEVER_BELOW))
    return made


def parse(name: str, doc: str | None) -> argparse.Namespace:
    """The options of a benchmark of this module's shape, called ``name`` and described by ``doc``."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=(doc or "").partition("\n")[0])
    add = parser.add_argument
    add("--quick", action="store_true", help="one round of one stream: to see that it runs")
    add("--streams", type=int, nargs="+", metavar="N", help="answers at once (default: 1 16; quick: 1)")
    add("--rounds", type=int, help="(default: 8; quick: 1)")
    add("--dtype", choices=("auto", "float32", "bfloat16"), default="auto", help="(default: the server's)")
    add("--material", type=Path, default=ROOT / "build" / "bench", help="where the base is kept")
    add("--json", type=Path, metavar="FILE", help="(default: a new one in results)")
    options = parser.parse_args()
    options.streams = options.streams or ([1] if options.quick else [1, 16])
    options.rounds = options.rounds or (1 if options.quick else 8)
    options.json = options.json or RESULTS / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}.json"
    if min(*options.streams, options.rounds) < 1:
        parser.error("--streams and --rounds must be at least 1")
    return options


def main() -> None:
    """Measure, print the table and the goals, write the file."""
    options = parse("speculation", __doc__)
    options.material.mkdir(parents=True, exist_ok=True)
    machine = describe()
    console.print(sentence(machine), highlight=False, soft_wrap=True)
    base = prepare("default", options.material, usable_cpus(), options.material / "speculation.log")
    cells = asyncio.run(measure(options, base.folder))
    table = Table(title=f"{TOKENS} new tokens, tokens/s, medians", title_justify="left")
    for column in ("text", "at once", *WAYS, "ratio"):
        table.add_column(column)
    for cell in cells:
        found = cell["tokens_per_second"]
        speeds = (f"{sorted(found[way])[len(found[way]) // 2]:.1f}" for way in WAYS)
        table.add_row(
            f"{cell['kind']}: {cell['text']}", str(cell["streams"]), *speeds, f"{ratio(found, *WAYS[::-1]):.2f}"
        )
    console.print(table)
    for goal in goals(cells):
        console.print(str(goal), highlight=False, soft_wrap=True)
    settings = {"rounds": options.rounds, "tokens": TOKENS, "dtype": options.dtype}
    report = {
        "machine": machine,
        "settings": settings,
        "predicted": PREDICTED,
        "cells": cells,
        "goals": as_json(goals(cells)),
    }
    save(options.json, report)


if __name__ == "__main__":
    main()
