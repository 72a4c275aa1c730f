"""QLoRA on the resident base (arXiv 2305.14314): the whole of a run, written to be read from top to bottom.

The run is a generator that yields after every piece of work, so that whoever owns the model decides what happens
between two pieces, and yields a batch when it wants gradients, so that several jobs can share the pass that makes
them. The base is frozen and shared; all that a job owns is in :class:`~.run.Run`.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace
from pathlib import Path

import torch

from ..core.background import Report
from ..core.errors import Code, Error
from ..core.jobs import JobState, TrainCommand, TrainEvent, TrainEventType
from ..host.failpoints import reach
from ..model.resident import ResidentBase
from ..peft.folder import write_folder
from .checkpoint import Checkpoints, Snapshot, identity
from .evaluate import evaluate, refer
from .gradients import Batch
from .pace import Pace
from .reported import Told
from .run import Pieces, Run, start


def train(
    base: ResidentBase, command: TrainCommand, report: Report, pace: Pace, activation_memory: int | None
) -> Pieces[None]:
    """Train, evaluate and write the adapter to ``command.output``; yields the job's bytes after every piece.

    Goes on from the job's last checkpoint, and leaves one behind wherever it ends. Raises FAILED_PRECONDITION when
    the loss is no longer a number, RESOURCE_EXHAUSTED when a checkpoint does not fit on the disk: no adapter is
    written then.
    """
    run = yield from start(base, command, activation_memory)
    key = yield from identity(command, f"{base.fingerprint}/{base.dtype}", run.nbytes)
    checkpoints = Checkpoints(command, key)
    snapshot = checkpoints.latest()
    run.resume(snapshot)
    first, total, started = run.step, run.order.total_steps, time.monotonic()
    words = f"training goes on after step {first}" if first else "training"
    report(TrainEvent(TrainEventType.STATE, words, JobState.RUNNING, first, total))
    for lost in checkpoints.passed_over:
        kind = TrainEventType.CHECKPOINT_LOST if lost.damaged else TrainEventType.MESSAGE
        words = f"the checkpoint at step {lost.step} is passed over: {lost.reason}"
        report(TrainEvent(kind, words, None, first, total))
    # Steps that another run did, on other data, are told as they are done.
    same_run = all(lost.damaged for lost in checkpoints.passed_over)
    told = Told(report, command.stored if same_run else None, snapshot.told if snapshot else ())

    def worked() -> float:
        return run.seconds + time.monotonic() - started

    def snapshot_now() -> Snapshot:
        return replace(run.snapshot(worked()), told=told.events)

    with checkpoints.saved_at_the_end(snapshot_now):
        while run.step < total and not run.stopped_early:
            batch = Batch(run)
            yield from refer(run, list(batch.rows.values()), [run.stacks[i] for i in batch.indices], pace)
            yield batch
            rate, figures = run.order.learning_rate(run.step), batch.means
            norm = torch.nn.utils.clip_grad_norm_(run.adapter.flat(), command.spec.max_grad_norm)
            if not (bool(torch.isfinite(norm)) and math.isfinite(figures["loss"])):
                raise Error(
                    Code.FAILED_PRECONDITION,
                    f"the loss is not a number at step {run.step + 1} of {total}; lower learning_rate (now {rate:.3g})",
                    reason="LOSS_NOT_FINITE",
                )
            for group in run.optimizer.param_groups:
                group["lr"] = rate
            run.optimizer.step()
            run.optimizer.zero_grad(set_to_none=True)
            run.step, run.trained = run.step + 1, run.trained + batch.tokens
            metrics = figures | {
                "learning_rate": rate,
                "grad_norm": float(norm),
                "epoch": run.step / run.order.steps_per_epoch,
                "tokens": float(batch.tokens),
                "trained_tokens": float(run.trained),
                "tokens_per_second": run.trained / worked(),
                "eta_seconds": (time.monotonic() - started) / (run.step - first) * (total - run.step),
            }
            told.report(TrainEvent(TrainEventType.STEP, step=run.step, total_steps=total, metrics=metrics))
            if command.validation and run.order.evaluates_after(run.step):
                metrics = yield from evaluate(run, pace, only_new=True)
                run.judge(metrics["eval_loss"])
                told.report(TrainEvent(TrainEventType.EVALUATION, "", None, run.step, total, metrics))
            if checkpoints.due(run.step):
                checkpoints.begin(snapshot_now())
            if (saved := checkpoints.settled()) is not None:
                report(TrainEvent(TrainEventType.CHECKPOINT, f"checkpoint at step {saved}", None, saved, total))
        checkpoints.begin(snapshot_now())
        report(TrainEvent(TrainEventType.STATE, "measuring", JobState.EVALUATING, run.step, total))
        if run.best is not None and run.best.step != run.step:
            run.take_best()
            words = f"the least held-out loss was at step {run.best.step}: that adapter is kept"
            report(TrainEvent(TrainEventType.MESSAGE, words, None, run.step, total))
        metrics = yield from evaluate(run, pace)
        if metrics:
            report(TrainEvent(TrainEventType.EVALUATION, "", None, run.step, total, metrics))
        reach("train.evaluated")
        _write(base, command, run)


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
