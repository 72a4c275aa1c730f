"""What a job owns while it runs, how it is set up, and how it is put down in a snapshot and taken up again."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn

from ..core.jobs import TrainCommand, TrainRow
from ..core.types import AdapterVersion
from ..host.resources import host_available
from ..lora.bank import AdapterBank, HostAdapter, LoraPair
from ..lora.routing import Entries
from ..lora.trainable import TrainableAdapter
from ..model.resident import ResidentBase
from ..peft.folder import naming, read_folder
from .checkpoint import Snapshot
from .layers import LayerPlan, Units
from .objective import Objective, objective_of
from .order import Order, assign_stacks
from .step import RowRunner, Rows, score
from .targets import target_modules

if TYPE_CHECKING:
    from .gradients import Batch

T = TypeVar("T")
Pieces = Generator["int | Batch | None", None, T]
"""Work in pieces: yields the bytes that the job holds after one, or a batch whose gradients it waits for, and None in
the middle of a piece, where others may have the base for a while; returns T."""

CACHE_SHARE = 8
"""At most one part in this many of the host's free memory holds activations of frozen layers."""


@dataclass(slots=True)
class Best:
    """The best state that an evaluation has seen, and how many evaluations since were no better."""

    step: int
    loss: float
    values: list[Tensor]  # the adapter's parameters, in order
    since: int = 0


@dataclass(slots=True)
class Run:
    """A job at work. ``step`` counts the optimiser steps that are done, ``seconds`` the time of earlier attempts."""

    base: ResidentBase
    command: TrainCommand
    objective: Objective
    adapter: TrainableAdapter
    rows: RowRunner
    optimizer: torch.optim.AdamW
    order: Order
    stacks: list[int]  # frozen stack under each training row
    lengths: list[int]  # tokens that the model reads for each training row
    bank: AdapterBank
    current: RowRunner | None  # runs rows through the version that the new one would replace
    initial: TrainableAdapter | None  # the version that the job goes on from, frozen; None: fresh weights
    step: int = 0
    trained: int = 0
    seconds: float = 0.0
    best: Best | None = None
    references: dict[tuple[TrainRow, int], tuple[float, ...]] = field(default_factory=dict)
    """What the texts of a row over a stack are without the job's training, as log-probabilities: ``evaluate.refer``."""

    @property
    def total(self) -> int:
        """Optimiser steps of the whole run."""
        return self.order.total_steps

    def length(self, row: TrainRow) -> int:
        """Tokens that the model reads for a row."""
        return sum(len(text.input_ids) for text in self.objective.texts(row))

    def reference(self, row: TrainRow, stack: int) -> tuple[float, ...]:
        """The reference of a row, where the objective needs one."""
        return self.references[row, stack] if self.objective.referenced else ()

    @property
    def nbytes(self) -> int:
        initial = self.initial.weight_bytes if self.initial is not None else 0
        return self.adapter.nbytes + initial + self.rows.nbytes + self.bank.used_bytes

    @property
    def stopped_early(self) -> bool:
        """Whether the last evaluations were no better for as long as the settings allow."""
        patience = self.order.spec.early_stopping_patience
        return patience is not None and self.best is not None and self.best.since >= patience

    def judge(self, loss: float) -> None:
        """Keep the present state if ``loss`` on the held-out rows is the least so far."""
        if self.best is None or loss < self.best.loss or self.best.loss != self.best.loss:
            self.best = Best(self.step, loss, [_copy(p) for p in self.adapter.flat()])
        else:
            self.best.since += 1

    def take_best(self) -> None:
        """Go back to the best state that was seen, if evaluations looked for one."""
        if self.best is not None:
            with torch.no_grad():
                for p, value in zip(self.adapter.flat(), self.best.values, strict=True):
                    p.copy_(value)

    def snapshot(self, seconds: float) -> Snapshot:
        """The state after ``step`` steps and ``seconds`` of work; later steps do not change it."""
        tensors = {}
        for name, p in self._named():
            tensors[name] = _copy(p)
            for key, value in self.optimizer.state[p].items():
                tensors[f"{name}.{key}"] = _copy(value)
        figures = {"trained": float(self.trained), "seconds": seconds}
        if self.best is not None:
            figures |= {"best_step": self.best.step, "best_loss": self.best.loss, "best_since": self.best.since}
            tensors |= {f"best.{i}": value for i, value in enumerate(self.best.values)}
        return Snapshot(self.step, tensors, figures)

    def resume(self, snapshot: Snapshot | None) -> None:
        """Go on from a snapshot, if there is one."""
        if snapshot is None:
            return
        for name, p in self._named():
            with torch.no_grad():
                p.copy_(snapshot.tensors[name])
            moments = {k: snapshot.tensors[f"{name}.{k}"] for k in ("step", "exp_avg", "exp_avg_sq")}
            self.optimizer.state[p] = {k: value.to(p.device) for k, value in moments.items()}
        self.step = snapshot.step
        figures = snapshot.figures
        self.trained, self.seconds = int(figures["trained"]), figures["seconds"]
        if "best_step" in figures:
            values = [snapshot.tensors[f"best.{i}"] for i in range(len(self.adapter.flat()))]
            self.best = Best(int(figures["best_step"]), figures["best_loss"], values, int(figures["best_since"]))

    def _named(self) -> Iterator[tuple[str, nn.Parameter]]:
        for name, (a, b) in self.adapter.parameters.items():
            yield f"{name}.A", a
            yield f"{name}.B", b


def start(base: ResidentBase, command: TrainCommand, activation_memory: int | None) -> Pieces[Run]:
    """Set a run up at its first step: adapters underneath, new parameters, and how the layers run."""
    bank, stacks = yield from _frozen_stacks(base, command)
    spec = command.spec
    adapter = TrainableAdapter(
        base.groups,
        target_modules(spec, base.groups),
        rank=spec.rank,
        alpha=spec.alpha,
        rslora=spec.rslora,
        dropout=spec.dropout,
        generator=torch.Generator().manual_seed(spec.seed),
        device=base.device,
    )
    initial = None
    if command.init is not None:
        adapter.load(_read(base, command.init))
        initial = adapter.frozen()
    touched = adapter.groups | {g for entries in stacks for slot, _ in entries for g in slot.groups}
    plan = LayerPlan(base, min((base.groups[g].layer or 0) for g in touched), activation_memory)
    runner = RowRunner(base, bank, stacks, plan, host_available() // CACHE_SHARE)
    whole = RowRunner(base, bank, stacks, LayerPlan(base, 0, activation_memory), 0)
    if plan.first and not (yield from _same(base, runner, whole, command.rows[0])):
        runner = whole
    optimizer = torch.optim.AdamW(
        adapter.flat(),
        lr=spec.learning_rate,
        betas=(spec.beta1, spec.beta2),
        weight_decay=spec.weight_decay,
        fused=True,
    )
    current = None
    if (version := _measured_apart(command)) is not None:
        slot = bank.slot(version.digest)
        # May act on lower layers than the job does, so it runs all of them.
        current = RowRunner(base, bank, [(*entries, (slot, 1.0)) for entries in stacks], LayerPlan(base, 0), 0)
    run = Run(
        base=base,
        command=command,
        objective=objective_of(spec),
        adapter=adapter,
        rows=runner,
        optimizer=optimizer,
        order=Order(spec, len(command.rows)),
        stacks=assign_stacks(command.rows, len(stacks)),
        lengths=[],
        bank=bank,
        current=current,
        initial=initial,
    )
    run.lengths = [run.length(row) for row in command.rows]
    return run


def _measured_apart(command: TrainCommand) -> AdapterVersion | None:
    """The current version, where it is measured by itself: not without held-out rows, nor if the job goes on from it.

    What the job goes on from is measured anyway, and in the precision of what is trained, so that an adapter that did
    not change is no better by rounding.
    """
    current = command.current if command.validation else None
    same = current is not None and command.init is not None and current.digest == command.init.digest
    return None if same else current


def _read(base: ResidentBase, version: AdapterVersion, dtype: torch.dtype | None = None) -> dict[str, LoraPair]:
    with naming(version):
        return read_folder(version.path, base.modules, base.fingerprint, dtype=dtype, sha256=version.sha256)[1]


def _frozen_stacks(base: ResidentBase, command: TrainCommand) -> Pieces[tuple[AdapterBank, list[Entries]]]:
    """Read the adapters underneath into a bank of the job's own, one a piece; returns it and the stacks' slots."""
    versions = {e.adapter.digest: e.adapter for stack in command.stacks for e in stack.entries}
    if (current := _measured_apart(command)) is not None:
        versions[current.digest] = current
    bank = AdapterBank(base.groups, sum(v.rank for v in versions.values()), base.device, base.dtype)
    for version in versions.values():
        bank.put(HostAdapter(version.digest, _read(base, version, base.dtype)))
        yield bank.used_bytes
    stacks: list[Entries] = [
        tuple((bank.slot(e.adapter.digest), e.weight) for e in stack.entries if e.weight) for stack in command.stacks
    ]
    return bank, stacks


def _same(base: ResidentBase, a: RowRunner, b: RowRunner, row: TrainRow) -> Units[bool]:
    """Whether two ways through the layers give the same; some architectures cannot start at a later layer."""
    found = []
    for runner in (a, b):
        (scores,) = yield from score(base, [Rows(runner, [row], [0])])
        found.append(float(scores.logprobs))
    return abs(found[0] - found[1]) <= 1e-3 * max(1.0, abs(found[1]))


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)
