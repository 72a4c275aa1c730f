"""All that a job owns while it trains, and its snapshots."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..core.jobs import TrainCommand, TrainRow
from ..data.rows_file import RowTable
from ..lora.bank import AdapterBank
from ..lora.trainable import TrainableAdapter
from ..model.resident import ResidentBase
from .backprop.frozen_model import FrozenModel
from .checkpoints.checkpoint import Snapshot
from .checkpoints.host_copy import copy_to_host
from .objectives.objective import Objective
from .objectives.teacher import Teacher
from .schedule import Schedule


@dataclass(slots=True)
class Best:
    """The weights with the least held-out loss so far, and how many evaluations since were no better."""

    step: int
    loss: float
    values: list[Tensor]  # the adapter's parameters, in order; on the host once the device's stream got so far
    since: int = 0


@dataclass(slots=True)
class TrainingRun:
    """A job at work. ``step`` counts finished optimizer steps, ``seconds`` the training time of earlier attempts."""

    base: ResidentBase
    command: TrainCommand
    rows: RowTable
    held_out: RowTable
    objective: Objective
    adapter: TrainableAdapter
    frozen: FrozenModel
    optimizer: torch.optim.AdamW
    schedule: Schedule
    stacks: list[int]  # index of the frozen stack under each training row
    bank: AdapterBank
    current: FrozenModel | None  # with the version that the new one would replace
    initial: TrainableAdapter | None  # the version that the job starts from, frozen; None: fresh weights
    teacher: Teacher | None  # of a distillation
    step: int = 0
    trained: int = 0  # tokens of the rows in those steps
    seconds: float = 0.0
    best: Best | None = None
    references: dict[tuple[TrainRow, int], tuple[float, ...]] = field(default_factory=dict)
    """Log-probabilities of a row's inputs over a stack before training; see ``evaluation.cache_references``."""

    @property
    def total(self) -> int:
        """Optimizer steps of the whole job."""
        return self.schedule.total_steps

    def length(self, row: TrainRow) -> int:
        """Tokens that the model reads for a row."""
        return sum(len(each.input_ids) for each in self.objective.inputs(row))

    def reference(self, row: TrainRow, stack: int) -> tuple[float, ...]:
        """The reference log-probabilities of a row over a stack; empty where the objective needs none."""
        return self.references[row, stack] if self.objective.needs_reference else ()

    def targets(self, rows: Sequence[TrainRow], stacks: Sequence[int]) -> list[Tensor]:
        """The teacher's states for rows over their stacks; none without a teacher."""
        if self.teacher is None:
            return []
        return [self.teacher.states(row, stack) for row, stack in zip(rows, stacks, strict=True)]

    @property
    def nbytes(self) -> int:
        """Bytes of weights, gradients, optimizer state, frozen adapters, kept activations and a teacher's states."""
        initial = self.initial.weight_bytes if self.initial is not None else 0
        taught = self.teacher.nbytes if self.teacher is not None else 0
        return self.adapter.nbytes + initial + self.frozen.nbytes + self.bank.used_bytes + taught

    @property
    def stopped_early(self) -> bool:
        """Whether as many evaluations in a row as ``early_stopping_patience`` allows were no better."""
        patience = self.schedule.spec.early_stopping_patience
        return patience is not None and self.best is not None and self.best.since >= patience

    def judge(self, loss: float) -> None:
        """Keep a copy of the weights if ``loss`` on the held-out rows is the least so far."""
        if self.best is None or loss < self.best.loss or self.best.loss != self.best.loss:
            copies, _ = copy_to_host({str(i): p for i, p in enumerate(self.adapter.flat())})
            self.best = Best(self.step, loss, list(copies.values()))
        else:
            self.best.since += 1

    def restore_best(self) -> None:
        """Go back to the weights with the least held-out loss, if any were evaluated."""
        if self.best is not None:
            with torch.no_grad():
                for p, value in zip(self.adapter.flat(), self.best.values, strict=True):
                    p.copy_(value)

    def snapshot(self, seconds: float) -> Snapshot:
        """A copy of the state after ``step`` steps and ``seconds`` of training."""
        state: dict[str, Tensor] = {}
        for name, p in self._named_parameters():
            state[name] = p
            state |= {f"{name}.{key}": value for key, value in self.optimizer.state[p].items()}
        tensors, copied = copy_to_host(state)
        numbers = {"trained": float(self.trained), "seconds": seconds}
        if self.best is not None:
            numbers |= {"best_step": self.best.step, "best_loss": self.best.loss, "best_since": self.best.since}
            tensors |= {f"best.{i}": value for i, value in enumerate(self.best.values)}
        return Snapshot(self.step, tensors, numbers, copied=copied)

    def resume(self, snapshot: Snapshot | None) -> None:
        """Continue from a snapshot, if there is one."""
        if snapshot is None:
            return
        for name, p in self._named_parameters():
            with torch.no_grad():
                p.copy_(snapshot.tensors[name])
            moments = {k: snapshot.tensors[f"{name}.{k}"] for k in ("step", "exp_avg", "exp_avg_sq")}
            self.optimizer.state[p] = {k: value.to(p.device) for k, value in moments.items()}
        self.step = snapshot.step
        numbers = snapshot.numbers
        self.trained, self.seconds = int(numbers["trained"]), numbers["seconds"]
        if "best_step" in numbers:
            values = [snapshot.tensors[f"best.{i}"] for i in range(len(self.adapter.flat()))]
            self.best = Best(int(numbers["best_step"]), numbers["best_loss"], values, int(numbers["best_since"]))

    def _named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        for name, (a, b) in self.adapter.parameters.items():
            yield f"{name}.A", a
            yield f"{name}.B", b
