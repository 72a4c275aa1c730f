"""Evaluation on held-out rows: the new adapter beside the base and earlier versions.

Here is also what training compares with: references for DPO, a teacher's states for distillation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from ..core.jobs import TrainRow
from ..data.rows_file import assign_stacks
from ..lora.trainable import TrainableAdapter
from ..model.out_of_memory import out_of_memory, release_cached
from .backprop.frozen_model import FrozenModel
from .backprop.micro_batch import JobRows, row_logprobs
from .backprop.micro_batch_size import MicroBatchSizer
from .objectives.teacher import text_of
from .run import TrainingRun
from .work import Held, Interruptible, Tasks

T = TypeVar("T")

TAUGHT_TOGETHER = 64
"""Held-out rows whose teacher's states have to be kept at the same time."""


def evaluate(run: TrainingRun, sizer: MicroBatchSizer, *, only_new: bool = False) -> Tasks[dict[str, float]]:
    """Mean metrics of the job's objective on the held-out rows, the loss first; empty without held-out rows.

    ``eval_*`` are of the new adapter, ``base_*`` of the frozen stack under each row alone, ``init_*`` of the version
    that the job starts from, ``current_*`` of the version that the name means now. With ``only_new`` there is
    ``eval_*`` alone.
    """
    rows, objective = run.held_out, run.objective
    if not rows:
        return {}
    stacks = assign_stacks(rows.named_stacks, len(run.command.stacks))
    yield from cache_references(run, rows, stacks, sizer)
    models: list[tuple[str, FrozenModel, TrainableAdapter | None]] = [("eval", run.frozen, run.adapter)]
    if not only_new:
        models.append(("base", run.frozen, None))
        if run.initial is not None:
            models.append(("init", run.frozen, run.initial))
        if run.current is not None:
            models.append(("current", run.current, None))
    sums: dict[str, float] = {}
    lengths = rows.lengths

    def measure(indices: list[int]) -> Interruptible[dict[str, float]]:
        inputs = [(i, row) for i in indices for row in objective.inputs(rows[i])]
        reference = [run.reference(rows[i], stacks[i]) for i in indices]
        targets = run.targets([rows[i] for i in indices], [stacks[i] for i in indices])
        found: dict[str, float] = {}
        for name, frozen, adapter in models:
            under = [stacks[i] for i, _ in inputs]
            job_rows = JobRows(frozen, [row for _, row in inputs], under, adapter, targets=targets)
            work = row_logprobs(run.base, [job_rows])
            (logprobs,) = yield from sizer.timed(sum(lengths[i] for i in indices), work)
            found |= {
                f"{name}_{metric}": value for metric, value in objective.loss(logprobs, reference).metrics.items()
            }
        return found

    together = TAUGHT_TOGETHER if run.teacher is not None else len(rows)
    for start in range(0, len(rows), together):
        indices = range(start, min(start + together, len(rows)))
        yield from cache_teacher(run, [rows[i] for i in indices], [stacks[i] for i in indices], sizer)
        for part in (yield from _in_micro_batches(run, sizer, indices, lengths, measure)):
            sums = {name: sums.get(name, 0.0) + value for name, value in part.items()}
    denominator = sum(objective.denominator(row) for row in rows)
    means = {name: value / denominator for name, value in sums.items()}
    if run.command.current is not None and run.current is None:  # the job starts from the current version
        means |= {f"current_{n.removeprefix('init_')}": value for n, value in means.items() if n.startswith("init_")}
    return means


def cache_references(
    run: TrainingRun, rows: Sequence[TrainRow], stacks: Sequence[int], sizer: MicroBatchSizer
) -> Tasks[None]:
    """Compute the references of rows, each over its stack, where the objective needs them and they are missing.

    A reference is the log-probabilities of a row's inputs before training: with the version that the job starts from,
    or else without an adapter of its own.
    """
    if not run.objective.needs_reference:
        return
    missing = [i for i, key in enumerate(zip(rows, stacks, strict=True)) if key not in run.references]
    lengths = [run.length(row) for row in rows]

    def measure(indices: list[int]) -> Interruptible[None]:
        inputs = [(i, row) for i in indices for row in run.objective.inputs(rows[i])]
        job_rows = JobRows(run.frozen, [row for _, row in inputs], [stacks[i] for i, _ in inputs], run.initial)
        work = row_logprobs(run.base, [job_rows])
        (logprobs,) = yield from sizer.timed(sum(lengths[i] for i in indices), work)
        values = iter(logprobs.logprobs.tolist())
        for i in indices:
            run.references[rows[i], stacks[i]] = tuple(next(values) for _ in run.objective.inputs(rows[i]))

    yield from _in_micro_batches(run, sizer, missing, lengths, measure)


def cache_teacher(
    run: TrainingRun, rows: Sequence[TrainRow], stacks: Sequence[int], sizer: MicroBatchSizer
) -> Tasks[None]:
    """Compute the teacher's states for rows, each over its stack, where there is a teacher and they are missing."""
    teacher = run.teacher
    if teacher is None:
        return
    lengths = [len(text_of(row).input_ids) for row in rows]

    def measure(indices: list[int]) -> Interruptible[None]:
        work = teacher.compute([rows[i] for i in indices], [stacks[i] for i in indices])
        yield from sizer.timed(sum(lengths[i] for i in indices), work)

    yield from _in_micro_batches(run, sizer, teacher.missing(rows, stacks), lengths, measure)


def _in_micro_batches(
    run: TrainingRun,
    sizer: MicroBatchSizer,
    rows: Sequence[int],
    lengths: Sequence[int],
    measure: Callable[[list[int]], Interruptible[T]],
) -> Tasks[list[T]]:
    """``measure`` for all rows, a micro-batch a task; one that finds no memory is done again in halves of its size.

    Raises the error of a single row that finds none.
    """
    left, found = list(rows), list[T]()
    while left:
        indices = sizer.first(left, lengths, run.command.spec.batch_size)
        short = False
        try:
            found.append((yield from measure(indices)))
        except (RuntimeError, MemoryError) as error:
            short = out_of_memory(error) and len(indices) > 1
            if not short:
                raise
        # Outside of the handler, so that what the failed micro-batch held is free.
        if short:
            release_cached()
            sizer.limit(max(1, sum(lengths[i] for i in indices) // 2))
        else:
            del left[: len(indices)]
        yield Held(run.nbytes)
    return found
