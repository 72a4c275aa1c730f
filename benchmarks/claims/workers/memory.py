"""The memory that a few steps of training take, base included, beyond that of the libraries."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from loramux_server.core.jobs import TrainSpec

from ...processes import peak_bytes, reset_peak
from ...train_job import TrainJob
from ...trainers.direct import run_direct
from ...trainers.rows import load_rows
from . import loop

OWN = (os.getpid(),)


def run(settings: dict[str, Any]) -> Iterator[dict[str, int]]:
    """A case's peak: the largest resident size of this process, less what it had before the base was loaded."""
    torch.set_num_threads(settings["threads"])
    measure = _loramux if settings["case"]["loop"] == "loramux" else _plain
    reset_peak(OWN)
    before = peak_bytes(OWN)
    measure(settings)
    yield {"peak_bytes": peak_bytes(OWN) - before}


def _plain(settings: dict[str, Any]) -> None:
    case, spec = settings["case"], TrainSpec(**settings["spec"])
    dtype = getattr(torch, case["dtype"])
    rows = load_rows(settings["nf4"], settings["rows"])
    model = loop.trainable(loop.load_model(Path(settings["weights"]), dtype), case["way"], spec)
    reset_peak(OWN)  # what loading took for a moment is no part of training, here as in the job
    loop.train(model, rows, spec, dtype)


def _loramux(settings: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        run_direct(
            TrainJob(
                system="direct",
                base=settings["weights"],
                data=(settings["rows"],),
                dtype=settings["case"]["dtype"],
                threads=settings["threads"],
                scratch=scratch,
                cpu_weights="packed",
                **settings["spec"],
            )
        )
