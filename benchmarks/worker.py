"""The process that one system has to itself: ``python -m benchmarks.worker`` reads a job and writes lines of results.

Both are JSON, on standard input and output; whatever libraries print goes to standard error.
"""

from __future__ import annotations

import os
import sys
import traceback

import msgspec
import uvloop

from .job import CellResult, Job, Line
from .processes import peak_bytes, reset_peak
from .samples import summarise
from .systems import System, open_system
from .workloads import Cell


async def measure(system: System, cell: Cell) -> CellResult:
    """One workload, after a few requests that warm up."""
    asks, warm_up = cell.asks(), cell.warm_up()
    await system.run(warm_up, cell.concurrency)
    reset_peak(system.pids())
    samples, seconds = await system.run(asks, cell.concurrency)
    for sample in samples:
        if len(sample.tokens) != cell.tokens:
            raise RuntimeError(f"{len(sample.tokens)} tokens came where {cell.tokens} were asked for")
    return CellResult(
        cell,
        summarise(samples, seconds),
        sum(s.prompt_tokens for s in samples),
        peak_bytes(system.pids()),
        tuple(s.tokens for s in samples),
    )


async def work(job: Job, out: int) -> None:
    """Run a job's workloads, a line for each; one that fails is left out, with the reason."""

    def tell(line: Line) -> None:
        os.write(out, msgspec.json.encode(line) + b"\n")

    async with open_system(job) as system:
        tell(Line(note="ready"))
        for cell in job.cells:
            if why := system.refuses(cell):
                tell(Line(left_out=cell.name, note=why))
                continue
            try:
                tell(Line(result=await measure(system, cell)))
            except Exception as error:  # whatever a peer's code raises: the other workloads still count
                traceback.print_exc()
                tell(Line(left_out=cell.name, note=f"{type(error).__name__}: {error}"))
        tell(Line(facts=system.facts))


def main() -> None:
    out = os.dup(1)
    os.dup2(2, 1)
    job = msgspec.json.decode(sys.stdin.buffer.read(), type=Job)
    uvloop.run(work(job, out))


if __name__ == "__main__":
    main()
