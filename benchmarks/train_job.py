"""What crosses between a training benchmark and the processes that train: one job in, one result out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from loramux_server.core.jobs import TrainSpec
from loramux_server.core.settings import Device

OURS = ("loramux", "loramux-jobs", "direct")
PEERS = ("trl", "trl-plain")
SYSTEMS = (*OURS, *PEERS)
TITLES = {
    "loramux": "loramux over gRPC",
    "loramux-jobs": "loramux, jobs at once",
    "direct": "loramux's trainer, called",
    "trl": "TRL SFTTrainer, its defaults",
    "trl-plain": "TRL, no checkpointing",
}
LAST = 8
"""Steps whose losses make the final loss."""


@dataclass(frozen=True, slots=True)
class TrainJob:
    """What one process trains. Paths are absolute; every file is a job's training rows, the first one's is measured."""

    system: str
    base: str
    """NF4 folder in transformers' format."""
    data: tuple[str, ...]
    dtype: str
    threads: int
    scratch: str
    """Folder that this process may fill."""
    epochs: float = 4
    max_steps: int | None = None
    rank: int = 16
    alpha: float = 32
    layers: tuple[int, ...] | None = None
    batch_size: int = 8
    learning_rate: float = 3e-3
    every: int = 0
    """Steps between two adapters that are kept for measuring; 0: none. The time it takes is not counted."""
    cpu_weights: str = "auto"
    activation_memory: int | None = None
    """As the server's flag; None: its default."""
    device: Device = "cpu"

    @property
    def spec(self) -> TrainSpec:
        """The settings as the trainer takes them."""
        return TrainSpec(
            rank=self.rank,
            alpha=self.alpha,
            layers=self.layers,
            learning_rate=self.learning_rate,
            epochs=self.epochs,
            max_steps=self.max_steps,
            batch_size=self.batch_size,
        )

    @property
    def settings(self) -> dict[str, Any]:
        """The settings as the client takes them."""
        return {
            "rank": self.rank,
            "alpha": self.alpha,
            "layers": self.layers,
            "learning_rate": self.learning_rate,
            "epochs": self.epochs,
            "max_steps": self.max_steps,
            "batch_size": self.batch_size,
            "seed": 0,
        }


@dataclass(frozen=True, slots=True)
class Steps:
    """One job's steps. ``ends`` are seconds from when it was asked for to each step's end; ``begin`` to the first's."""

    begin: float
    ends: tuple[float, ...]
    tokens: tuple[int, ...]
    """Input tokens of each step, padding not counted."""
    losses: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What one process found."""

    jobs: tuple[Steps, ...]
    peak_bytes: int
    """Largest resident memory of all the system's processes, from just before training on; 0: not known."""
    saved: dict[int, str] = field(default_factory=dict)
    """Step -> PEFT folder of the adapter after it."""
    facts: dict[str, str] = field(default_factory=dict)


def tokens_per_second(jobs: Sequence[Steps], skip: int = 0) -> float:
    """Input tokens per second of all jobs together, from the first step's begin to the last one's end.

    The first ``skip`` steps of each job are left out, and then the time runs from the end of these. Raises ValueError
    without steps.
    """
    begins = [job.begin if not skip else job.ends[skip - 1] for job in jobs if len(job.ends) > skip]
    if not begins:
        raise ValueError("no step was measured")
    seconds = max(job.ends[-1] for job in jobs if len(job.ends) > skip) - min(begins)
    return sum(sum(job.tokens[skip:]) for job in jobs) / seconds


def final_loss(job: Steps) -> float:
    """Mean loss of the last steps, weighted by step."""
    last = job.losses[-LAST:]
    return sum(last) / len(last)


def time_to(share: float, accuracy: Mapping[int, float], ends: Sequence[float]) -> float | None:
    """Seconds to the end of the first measured step with at least ``share`` right; None: no step had."""
    reached = (step for step in sorted(accuracy) if accuracy[step] >= share)
    return next((ends[step - 1] for step in reached if step <= len(ends)), None)


def apart(left: Steps, right: Steps) -> float:
    """Largest difference of two runs' losses, step by step, relative to the larger: 0 is the same run."""
    if len(left.losses) != len(right.losses):
        return math.inf
    pairs = zip(left.losses, right.losses, strict=True)
    return max((abs(a - b) / max(abs(a), abs(b), 1e-2) for a, b in pairs), default=0.0)
