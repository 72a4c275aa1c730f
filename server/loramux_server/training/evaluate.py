"""Held-out rows, measured: the figures of the new adapter beside the base and the version before."""

from __future__ import annotations

from collections.abc import Sequence

from ..core.jobs import TrainRow
from ..lora.trainable import TrainableAdapter
from .order import assign_stacks
from .pace import Pace
from .run import Pieces, Run
from .step import RowRunner, Rows, score


def evaluate(run: Run, pace: Pace, *, only_new: bool = False) -> Pieces[dict[str, float]]:
    """Mean figures of the job's objective on the validation rows, the loss first; none when there are no rows.

    ``eval_*`` are the new adapter's, ``base_*`` those of the frozen stack that a row runs over, without any adapter of
    the job's, ``init_*`` those of the version that the job goes on from, and ``current_*`` those of the version that
    the name means now; with ``only_new`` there are just the first.
    """
    rows, objective = run.command.validation, run.objective
    if not rows:
        return {}
    under = assign_stacks(rows, len(run.command.stacks))
    yield from refer(run, rows, under, pace)
    sides: list[tuple[str, RowRunner, TrainableAdapter | None]] = [("eval", run.rows, run.adapter)]
    if not only_new:
        sides.append(("base", run.rows, None))
        if run.initial is not None:
            sides.append(("init", run.rows, run.initial))
        if run.current is not None:
            sides.append(("current", run.current, None))
    sums: dict[str, float] = {}
    lengths = [run.length(row) for row in rows]
    for part in pace.split(list(range(len(rows))), lengths, run.command.spec.batch_size):
        texts = [(i, text) for i in part for text in objective.texts(rows[i])]
        reference = [run.reference(rows[i], under[i]) for i in part]
        for name, runner, adapter in sides:
            taken = Rows(runner, [text for _, text in texts], [under[i] for i, _ in texts], adapter)
            (scores,) = yield from pace.measure(sum(lengths[i] for i in part), score(run.base, [taken]))
            for what, value in objective.measure(scores, reference).sums.items():
                sums[f"{name}_{what}"] = sums.get(f"{name}_{what}", 0.0) + value
        yield run.nbytes
    count = sum(objective.count(row) for row in rows)
    means = {name: value / count for name, value in sums.items()}
    if run.command.current is not None and run.current is None:  # the job goes on from it
        means |= {f"current_{n.removeprefix('init_')}": value for n, value in means.items() if n.startswith("init_")}
    return means


def refer(run: Run, rows: Sequence[TrainRow], under: Sequence[int], pace: Pace) -> Pieces[None]:
    """See to the references of rows, each over the stack ``under`` it, where the objective compares with them.

    They are the log-probabilities of a row's texts without the job's training: with the version that it goes on from,
    if there is one, else without an adapter of its own. They are computed once and kept.
    """
    if not run.objective.referenced:
        return
    missing = [i for i, (row, stack) in enumerate(zip(rows, under, strict=True)) if (row, stack) not in run.references]
    for part in pace.split(missing, [run.length(row) for row in rows], run.command.spec.batch_size):
        texts = [(i, text) for i in part for text in run.objective.texts(rows[i])]
        work = score(run.base, [Rows(run.rows, [text for _, text in texts], [under[i] for i, _ in texts], run.initial)])
        (scores,) = yield from pace.measure(sum(run.length(rows[i]) for i in part), work)
        found = iter(scores.logprobs.tolist())
        for i in part:
            run.references[rows[i], under[i]] = tuple(next(found) for _ in run.objective.texts(rows[i]))
        yield run.nbytes
