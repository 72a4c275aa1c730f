"""Held-out rows, measured: loss and token accuracy of the new adapter beside the base and the version before."""

from __future__ import annotations

import torch

from ..core.jobs import TrainCommand
from ..lora.trainable import TrainableAdapter
from .order import assign_stacks
from .pace import Pace
from .run import Pieces, Run
from .step import RowRunner


def evaluate(run: Run, command: TrainCommand, pace: Pace, *, only_new: bool = False) -> Pieces[dict[str, float]]:
    """Losses (natural log, a token) and token accuracies on the validation rows; none when there are no rows.

    ``eval_*`` are the new adapter's, ``base_*`` those of the frozen stack that a row runs over, without it, and
    ``current_*`` those of the version that the name means now; with ``only_new`` there is just the first.
    """
    rows = command.validation
    if not rows:
        return {}
    under = assign_stacks(rows, len(command.stacks))
    sides: list[tuple[str, RowRunner, TrainableAdapter | None]] = [("eval", run.rows, run.adapter)]
    if not only_new:
        sides.append(("base", run.rows, None))
        if run.current is not None:
            sides.append(("current", run.current, None))
    sums = {name: [0.0, 0, 0] for name, _, _ in sides}
    for part in pace.split(list(range(len(rows))), [len(r.input_ids) for r in rows], command.spec.batch_size):
        with pace.measure(len(sides) * sum(len(rows[i].input_ids) for i in part)), torch.no_grad():
            for name, runner, adapter in sides:
                found = runner.loss([rows[i] for i in part], [under[i] for i in part], adapter)
                sums[name][0] += float(found.total)
                sums[name][1] += found.tokens
                sums[name][2] += found.correct
        yield run.nbytes
    return {
        f"{name}_{what}": value
        for name, (loss, tokens, correct) in sums.items()
        for what, value in (("loss", loss / tokens), ("token_accuracy", correct / tokens))
    }
