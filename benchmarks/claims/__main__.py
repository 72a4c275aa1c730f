"""What is said of QLoRA, shown on this machine: ``make claims``, half an hour by estimate.

    make claims                                         # everything; goes on where a run was stopped
    make claims BENCH_ARGS=--quick                      # a few steps of each part, to see that it runs
    python -m benchmarks.claims --only memory quality   # some parts

Every part is written to the results file as soon as it is done, and ``docs/claims.md`` has its tables from there
(``--page``). Times are not measured: only counts, bytes, losses and answers, which a busy machine does not change.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from loramux_server.host.resources import usable_cpus

from ..machine import describe, sentence
from ..serving import RESULTS, ROOT, console
from . import arithmetic, large, memory, page, parameters, perplexity, quality, said, weights
from .results import Results
from .setting import Setting, prepared
from .tasks import FACTS, MOST_FACTS

PARTS: dict[str, Callable[[Setting, Results], None]] = {
    "parameters": parameters.measure,
    "weights": weights.measure,
    "memory": memory.measure,
    "large": large.measure,
    "arithmetic": arithmetic.measure,
    "perplexity": perplexity.measure,
    "quality": quality.measure,
}
IN_PIECES = ("memory", "quality")
"""Parts that are written piece by piece, and know themselves what is missing."""


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.claims", description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--quick", action="store_true", help="few rows and steps, one seed: to see that it runs")
    add("--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts to measure (default: all)")
    add("--seeds", type=int, metavar="N", help="of each best learning rate (default: 3; quick: 1)")
    add(
        "--facts",
        type=int,
        default=FACTS,
        metavar="N",
        help=f"that are learned, at most {MOST_FACTS} (default: {FACTS})",
    )
    add("--threads", type=int, default=usable_cpus(), help="(default: affinity and quota)")
    add("--material", type=Path, default=ROOT / "build" / "claims", help="where bases and logs are kept")
    add("--json", type=Path, metavar="FILE", help="results (default: today's in benchmarks/results; quick: material)")
    add("--page", action="store_true", help="write the tables of docs/claims.md from the newest results and stop")
    options = parser.parse_args(arguments)
    options.seeds = options.seeds or (1 if options.quick else 3)
    if min(options.seeds, options.threads) < 1 or not 1 <= options.facts <= MOST_FACTS:
        parser.error(f"--seeds and --threads must be at least 1, --facts 1 to {MOST_FACTS}")
    folder = options.material if options.quick else RESULTS
    options.json = options.json or folder / f"claims-{time.strftime('%Y%m%d')}.json"
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    if options.page:
        page.write()
        return
    machine = describe()
    console.print(sentence(machine), highlight=False, soft_wrap=True)
    setting = prepared(options.material, options.threads, options.seeds, options.facts, options.quick)
    about = {
        "machine": machine,
        "base": setting.name,
        "facts": options.facts,
        "quick": options.quick,
    }
    results = Results(options.json, about)
    for part in options.only:
        if part in results.parts and part not in IN_PIECES:
            continue  # an earlier run measured it
        console.print(f"[bold]{part}[/bold]")
        PARTS[part](setting, results)
    for claim in said.claims(results.parts):
        console.print(f"{claim.said}: {claim.found or page.MISSING}", highlight=False, soft_wrap=True)
    console.print(f"Figures: {options.json}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
