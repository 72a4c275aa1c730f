"""QLoRA on the resident base (arXiv 2305.14314): the whole of a run, written to be read from top to bottom.

The run is a generator that yields after every piece of work, so that whoever owns the model decides what happens
between two pieces. The base is frozen and shared; all that a job owns is in :class:`Run`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from ..core.errors import Code, Error
from ..core.jobs import JobState, TrainCommand, TrainEvent, TrainEventType, TrainRow
from ..lora.bank import AdapterBank, HostAdapter
from ..lora.host import host_available
from ..lora.peft_folder import read_folder, write_folder
from ..lora.routing import Entries
from ..lora.trainable import TrainableAdapter
from ..model.resident import ResidentBase
from .layers import LayerPlan
from .order import Order, assign_stacks
from .pace import Pace
from .step import RowRunner
from .targets import target_modules

Report = Callable[[TrainEvent], object]
T = TypeVar("T")
Pieces = Generator[int, None, T]
"""Work in pieces: yields the bytes that the job holds after each, and returns T."""

CACHE_SHARE = 8
"""At most one part in this many of the free memory holds activations of frozen layers."""


@dataclass(slots=True)
class Run:
    """What a job owns while it runs."""

    adapter: TrainableAdapter
    rows: RowRunner
    optimizer: torch.optim.AdamW
    order: Order
    stacks: list[int]  # frozen stack under each training row


def train(base: ResidentBase, command: TrainCommand, report: Report, pace: Pace) -> Pieces[None]:
    """Train, evaluate and write the adapter to ``command.output``; yields the job's bytes after every piece.

    Raises FAILED_PRECONDITION when the loss is no longer a number: nothing is written then.
    """
    spec, rows = command.spec, command.rows
    bank, stacks = yield from _frozen_stacks(base, command)
    run = _start(base, command, bank, stacks)
    total = run.order.total_steps
    report(TrainEvent(TrainEventType.STATE, "training", JobState.RUNNING, 0, total))
    started, trained = time.monotonic(), 0
    for step in range(total):
        batch = run.order.batch(step)
        learned = sum(sum(rows[i].labels[1:]) for i in batch)
        rate = run.order.learning_rate(step)
        loss = 0.0
        for part in pace.split(batch, [len(r.input_ids) for r in rows]):
            with pace.measure(sum(len(rows[i].input_ids) for i in part)):
                found = run.rows.loss(
                    [rows[i] for i in part], [run.stacks[i] for i in part], run.adapter, training=True
                )
                # Weighted by tokens over the whole batch, however it was split.
                (found.total / learned).backward()
                loss += float(found.total.detach()) / learned
            yield _nbytes(run, bank)
        norm = torch.nn.utils.clip_grad_norm_(run.adapter.flat(), spec.max_grad_norm)
        if not bool(torch.isfinite(norm)) or loss != loss:
            raise Error(
                Code.FAILED_PRECONDITION,
                f"the loss is not a number at step {step + 1} of {total}; lower learning_rate (now {rate:.3g})",
                reason="LOSS_NOT_FINITE",
            )
        for group in run.optimizer.param_groups:
            group["lr"] = rate
        run.optimizer.step()
        run.optimizer.zero_grad(set_to_none=True)
        tokens = sum(len(rows[i].input_ids) for i in batch)
        trained += tokens
        seconds = time.monotonic() - started
        metrics = {
            "loss": loss,
            "learning_rate": rate,
            "grad_norm": float(norm),
            "epoch": (step + 1) / run.order.steps_per_epoch,
            "tokens": float(tokens),
            "trained_tokens": float(trained),
            "tokens_per_second": trained / seconds,
            "eta_seconds": seconds / (step + 1) * (total - step - 1),
        }
        report(TrainEvent(TrainEventType.STEP, step=step + 1, total_steps=total, metrics=metrics))
    metrics = yield from _evaluate(run, command, pace, bank)
    if metrics:
        report(TrainEvent(TrainEventType.EVALUATION, step=total, total_steps=total, metrics=metrics))
    _write(base, command, run)


def _frozen_stacks(base: ResidentBase, command: TrainCommand) -> Pieces[tuple[AdapterBank, list[Entries]]]:
    """Read the adapters underneath into a bank of the job's own, one a piece; returns it and the stacks' slots."""
    versions = {e.adapter.digest: e.adapter for stack in command.stacks for e in stack.entries}
    bank = AdapterBank(base.groups, sum(v.rank for v in versions.values()), base.device, base.dtype)
    for version in versions.values():
        _, pairs = read_folder(version.path, base.modules, base.fingerprint, dtype=base.dtype)
        bank.put(HostAdapter(version.digest, pairs))
        yield bank.used_bytes
    stacks: list[Entries] = [
        tuple((bank.slot(e.adapter.digest), e.weight) for e in stack.entries if e.weight) for stack in command.stacks
    ]
    return bank, stacks


def _start(base: ResidentBase, command: TrainCommand, bank: AdapterBank, stacks: list[Entries]) -> Run:
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
    touched = adapter.groups | {g for entries in stacks for slot, _ in entries for g in slot.groups}
    first = min((base.groups[g].layer or 0) for g in touched)
    longest = max(sum(sorted((len(r.input_ids) for r in command.rows), reverse=True)[: spec.batch_size]), 1)
    plan = LayerPlan(base, first, _needs_checkpoints(base, longest, first))
    runner = RowRunner(base, bank, stacks, plan, host_available() // CACHE_SHARE if base.device.type == "cpu" else 0)
    if first and not _skips_exactly(runner, base, bank, stacks, command.rows[0]):
        plan = LayerPlan(base, 0, plan.checkpointed)
        runner = RowRunner(base, bank, stacks, plan, 0)
    optimizer = torch.optim.AdamW(
        adapter.flat(),
        lr=spec.learning_rate,
        betas=(spec.beta1, spec.beta2),
        weight_decay=spec.weight_decay,
        fused=True,
    )
    return Run(adapter, runner, optimizer, Order(spec, len(command.rows)), assign_stacks(command.rows, len(stacks)))


@torch.no_grad()
def _skips_exactly(
    runner: RowRunner, base: ResidentBase, bank: AdapterBank, stacks: list[Entries], row: TrainRow
) -> bool:
    """Whether starting from the first adapted layer gives what the whole model gives; some architectures differ."""
    whole = RowRunner(base, bank, stacks, LayerPlan(base, 0, False), 0)
    a, b = (float(r.loss([row], [0], None, training=False).total) for r in (runner, whole))
    return abs(a - b) <= 1e-3 * max(1.0, abs(b))


def _needs_checkpoints(base: ResidentBase, tokens: int, first: int) -> bool:
    """Whether the activations of a full batch would take over a quarter of the free memory.

    About 20 float32 values per hidden unit and 4 per intermediate unit are kept for each token and layer.
    """
    config = base.model.config
    hidden = int(config.hidden_size)
    inner = int(getattr(config, "intermediate_size", None) or 4 * hidden)
    needed = 4 * tokens * (len(base.layers) - first) * (20 * hidden + 4 * inner)
    free = host_available() if base.device.type == "cpu" else int(torch.cuda.mem_get_info(base.device)[0])
    return needed > free // 4


def _evaluate(run: Run, command: TrainCommand, pace: Pace, bank: AdapterBank) -> Pieces[dict[str, float]]:
    """Loss and token accuracy on the validation rows, with the new adapter and without it; returns the metrics."""
    rows = command.validation
    if not rows:
        return {}
    under = assign_stacks(rows, len(command.stacks))
    sums = {"eval": [0.0, 0, 0], "base": [0.0, 0, 0]}
    for part in pace.split(list(range(len(rows))), [len(r.input_ids) for r in rows], command.spec.batch_size):
        with pace.measure(2 * sum(len(rows[i].input_ids) for i in part)), torch.no_grad():
            for name, adapter in (("eval", run.adapter), ("base", None)):
                found = run.rows.loss([rows[i] for i in part], [under[i] for i in part], adapter, training=False)
                sums[name][0] += float(found.total)
                sums[name][1] += found.tokens
                sums[name][2] += found.correct
        yield _nbytes(run, bank)
    return {
        f"{name}_{what}": value
        for name, (loss, tokens, correct) in sums.items()
        for what, value in (("loss", loss / tokens), ("token_accuracy", correct / tokens))
    }


def _write(base: ResidentBase, command: TrainCommand, run: Run) -> None:
    spec = command.spec
    write_folder(
        Path(command.output),
        run.adapter.pairs(),
        rank=spec.rank,
        alpha=spec.alpha,
        rslora=spec.rslora,
        target_modules=spec.target_modules,
        layers=spec.layers,
        base_name=command.base_name or base.name,
        base_fingerprint=base.fingerprint,
        dropout=spec.dropout,
    )


def _nbytes(run: Run, bank: AdapterBank) -> int:
    return run.adapter.nbytes + run.rows.nbytes + bank.used_bytes
