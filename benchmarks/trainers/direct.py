"""loramux's trainer called in this process: no server, no gRPC, no engine loop.

It goes the way that the server's goes, so the adapters that it leaves on the way are those of a job that nothing
interrupts: ``benchmarks.training`` compares the losses of the two.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

from loramux_server.core.jobs import TrainCommand, TrainEvent, TrainEventType, TrainSpec
from loramux_server.core.settings import EngineSettings
from loramux_server.data.rows_file import HELD_OUT, TRAIN, find_rows, write_rows
from loramux_server.lora.bank import LoraPair
from loramux_server.model.resident import ResidentBase
from loramux_server.peft.folder import write_folder
from loramux_server.store.blobs.reader import BlobReader
from loramux_server.training.checkpoints.checkpoint import TENSORS_FILE
from loramux_server.training.job_scheduler import make_job_scheduler

from ..processes import peak_bytes, reset_peak
from ..train_job import Steps, TrainJob, TrainResult
from .rows import load_rows


class Notes:
    """Takes a run's events: the times of its steps, and an adapter for every checkpoint."""

    def __init__(self, spec: TrainSpec, checkpoints: Path, adapters: Path) -> None:
        self._spec, self._checkpoints, self._adapters = spec, checkpoints, adapters
        self._asked = time.perf_counter()
        self._apart = 0.0  # seconds that went into keeping adapters
        self.begin = 0.0
        self.ends: list[float] = []
        self.tokens: list[int] = []
        self.losses: list[float] = []
        self.saved: dict[int, str] = {}

    def take(self, event: TrainEvent) -> None:
        now = time.perf_counter() - self._asked - self._apart
        if event.type is TrainEventType.STEP:
            self.ends.append(now)
            self.tokens.append(int(event.metrics["tokens"]))
            self.losses.append(event.metrics["loss"])
        elif event.type is TrainEventType.CHECKPOINT:
            self._keep(event.step)
            self._apart += time.perf_counter() - self._asked - self._apart - now
        elif event.type is TrainEventType.STATE and not self.ends:
            self.begin = now

    def keep_last(self, folder: str) -> None:
        """The finished adapter is that of the last step."""
        self.saved[len(self.ends)] = folder

    def _keep(self, step: int) -> None:
        tensors = load_file(self._checkpoints / f"step-{step:08}" / TENSORS_FILE)
        names = [name.removesuffix(".A") for name in tensors if name.endswith(".A")]
        scaling = self._spec.alpha / self._spec.rank
        pairs = {name: LoraPair(tensors[f"{name}.A"], tensors[f"{name}.B"], scaling) for name in names}
        folder = self._adapters / f"step-{step}"
        write_folder(folder, pairs, rank=self._spec.rank, alpha=self._spec.alpha, layers=self._spec.layers)
        self.saved[step] = str(folder)


def run_direct(job: TrainJob) -> TrainResult:
    """Train the first file of a job."""
    torch.set_num_threads(job.threads)
    scratch = Path(job.scratch)
    settings = EngineSettings(
        model=job.base,
        state_dir=job.scratch,
        device=job.device,
        dtype=job.dtype,  # type: ignore[arg-type]
        cpu_weights=job.cpu_weights,  # type: ignore[arg-type]
        threads=job.threads,
    )
    base = ResidentBase.load(settings, Path(job.base))
    jobs = make_job_scheduler(base, BlobReader(scratch), job.activation_memory, jobs_dir=scratch)
    checkpoints, adapters = scratch / "checkpoints", scratch / "adapters"
    for folder in (checkpoints, adapters, scratch / "rows"):
        folder.mkdir(parents=True)
    write_rows(scratch / "rows", {TRAIN: load_rows(job.base, job.data[0]), HELD_OUT: ()}, b"")
    command = TrainCommand(
        "bench",
        job.spec,
        find_rows(scratch / "rows"),
        output=str(adapters / "last"),
        checkpoint_dir=str(checkpoints) if job.every else "",
        checkpoint_every=job.every,
        checkpoint_seconds=1e9,
    )
    reset_peak([os.getpid()])
    notes = Notes(job.spec, checkpoints, adapters)
    jobs.add(command, notes.take)
    while jobs.jobs:
        for _, error in jobs.advance(None):
            if error is not None:
                raise error
    notes.keep_last(command.output)
    steps = Steps(notes.begin, tuple(notes.ends), tuple(notes.tokens), tuple(notes.losses))
    facts = {"dtype": str(base.dtype).removeprefix("torch."), "weights": "packed" if base.packed else "unpacked"}
    return TrainResult((steps,), peak_bytes([os.getpid()]), notes.saved, facts)
