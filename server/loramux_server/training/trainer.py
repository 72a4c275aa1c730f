"""QLoRA on the resident base (arXiv 2305.14314): a job from its first step to the written adapter.

:func:`train` is a generator. It yields after every task, so that requests and other jobs get the base, and yields a
batch when it needs gradients, so that several jobs can share micro-batches. The base is frozen and shared; all that a
job owns is in :class:`~.run.TrainingRun`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path

import torch

from ..core.background import Report
from ..core.errors import Code, Error
from ..core.jobs import JobState, TrainCommand, TrainEvent, TrainEventType
from ..host.failpoints import reach
from ..model.out_of_memory import out_of_memory
from ..model.resident import ResidentBase
from ..peft.folder import write_folder
from ..store.blobs.reader import BlobReader
from .backprop.micro_batch_size import MicroBatchSizer
from .checkpoints.checkpoint import Checkpoints, Snapshot, run_identity
from .checkpoints.reporter import StepReporter
from .evaluation import cache_references, cache_teacher, evaluate
from .gradients import Batch, NeedsGradients
from .run import TrainingRun
from .setup import set_up
from .student import answer_rows
from .work import Held, Pause

Training = Generator[Pause | Held | NeedsGradients, None, None]
"""A job at work. It yields where it may be suspended, what it holds after a task, and batches that need gradients."""


def train(
    base: ResidentBase,
    command: TrainCommand,
    jobs_dir: Path,
    blobs: BlobReader,
    report: Report,
    sizer: MicroBatchSizer,
    activation_memory: int | None,
) -> Training:
    """Train, evaluate and write the adapter to ``command.output``.

    Resumes from the job's last checkpoint, and leaves a checkpoint wherever it ends. Raises FAILED_PRECONDITION when
    the loss is not finite, and RESOURCE_EXHAUSTED when a checkpoint does not fit on the disk: no adapter is written
    then.
    """
    run = yield from set_up(base, command, jobs_dir, blobs, activation_memory)
    precision = f"{base.fingerprint}/{base.dtype}"
    if base.training_dtype != torch.float32:
        precision += f"/{base.training_dtype}"
    identity = yield from run_identity(command, (run.rows, run.held_out), precision, run.nbytes)
    checkpoints = Checkpoints(command, identity)
    snapshot = checkpoints.latest()
    run.resume(snapshot)
    on_policy = command.spec.on_policy
    first, total, started = run.step, run.schedule.total_steps, time.monotonic()
    message = f"training goes on after step {first}" if first else "training"
    report(TrainEvent(TrainEventType.STATE, message, JobState.RUNNING, first, total))
    for skipped in checkpoints.skipped:
        kind = TrainEventType.CHECKPOINT_LOST if skipped.damaged else TrainEventType.MESSAGE
        message = f"the checkpoint at step {skipped.step} is not used: {skipped.reason}"
        report(TrainEvent(kind, message, None, first, total))
    # Steps that the front has stored of a run on other data are not steps of this run: all are reported.
    same_run = all(skipped.damaged for skipped in checkpoints.skipped)
    reporter = StepReporter(report, command.stored if same_run else None, snapshot.reported if snapshot else ())

    def seconds_trained() -> float:
        return run.seconds + time.monotonic() - started

    def snapshot_now() -> Snapshot:
        return replace(run.snapshot(seconds_trained()), reported=reporter.events)

    def begin_checkpoint() -> None:
        try:
            checkpoints.begin(snapshot_now())
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            checkpoints.miss(run.step)

    with checkpoints.saved_at_the_end(snapshot_now):
        while run.step < total and not run.stopped_early:
            batch = Batch(run, (yield from answer_rows(run, run.schedule.batch(run.step))) if on_policy else None)
            rows, stacks = list(batch.rows.values()), [run.stacks[i] for i in batch.indices]
            yield from cache_references(run, rows, stacks, sizer)
            yield from cache_teacher(run, rows, stacks, sizer)
            yield NeedsGradients(batch)
            if on_policy and run.teacher is not None:
                run.teacher.forget(rows, stacks)
            rate, metrics = run.schedule.learning_rate(run.step), batch.means
            norm = torch.nn.utils.clip_grad_norm_(run.adapter.flat(), command.spec.max_grad_norm)
            if not (bool(torch.isfinite(norm)) and math.isfinite(metrics["loss"])):
                raise Error(
                    Code.FAILED_PRECONDITION,
                    f"the loss or its gradient is not finite at step {run.step + 1} of {total}; lower learning_rate"
                    f" (now {rate:.3g})",
                    reason="LOSS_NOT_FINITE",
                )
            for group in run.optimizer.param_groups:
                group["lr"] = rate
            run.optimizer.step()
            run.optimizer.zero_grad(set_to_none=True)
            run.step, run.trained = run.step + 1, run.trained + batch.tokens
            metrics |= {
                "learning_rate": rate,
                "grad_norm": float(norm),
                "epoch": run.step / run.schedule.steps_per_epoch,
                "tokens": float(batch.tokens),
                "trained_tokens": float(run.trained),
                "tokens_per_second": run.trained / seconds_trained(),
                "eta_seconds": (time.monotonic() - started) / (run.step - first) * (total - run.step),
            }
            reporter.report(TrainEvent(TrainEventType.STEP, step=run.step, total_steps=total, metrics=metrics))
            if run.held_out and run.schedule.evaluates_after(run.step):
                metrics = yield from evaluate(run, sizer, only_new=True)
                run.judge(metrics["eval_loss"])
                reporter.report(TrainEvent(TrainEventType.EVALUATION, "", None, run.step, total, metrics))
            if checkpoints.due(run.step):
                begin_checkpoint()
            if (saved := checkpoints.finished()) is not None:
                report(TrainEvent(TrainEventType.CHECKPOINT, f"checkpoint at step {saved}", None, saved, total))
        begin_checkpoint()
        report(TrainEvent(TrainEventType.STATE, "measuring", JobState.EVALUATING, run.step, total))
        if run.best is not None and run.best.step != run.step:
            run.restore_best()
            message = f"the held-out loss was least at step {run.best.step}: the adapter of that step is kept"
            report(TrainEvent(TrainEventType.MESSAGE, message, None, run.step, total))
        metrics = yield from evaluate(run, sizer)
        if metrics:
            report(TrainEvent(TrainEventType.EVALUATION, "", None, run.step, total, metrics))
        reach("train.evaluated")
        _write(base, command, run)


def _write(base: ResidentBase, command: TrainCommand, run: TrainingRun) -> None:
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
