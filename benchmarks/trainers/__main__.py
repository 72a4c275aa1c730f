"""Reads one job, trains, writes one result. Both are JSON; whatever libraries print goes to standard error."""

from __future__ import annotations

import os
import sys

import msgspec

from ..train_job import OURS, PEERS, TrainJob, TrainResult


def train(job: TrainJob) -> TrainResult:
    """Train with the system of a job. Imports only what that one needs."""
    if job.system == "direct":
        from .direct import run_direct

        return run_direct(job)
    if job.system in OURS:
        from .server import run_server

        return run_server(job)
    if job.system in PEERS:
        from .trl import run_trl

        return run_trl(job)
    raise ValueError(f"unknown system {job.system!r}; one of {', '.join((*OURS, *PEERS))}")


def main() -> None:
    out = os.dup(1)
    os.dup2(2, 1)
    job = msgspec.json.decode(sys.stdin.buffer.read(), type=TrainJob)
    os.write(out, msgspec.json.encode(train(job)) + b"\n")


if __name__ == "__main__":
    main()
