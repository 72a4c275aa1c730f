"""The gradients of one optimiser step, added up part by part within the time and the memory that there are."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from ..core.errors import Code, Error
from ..core.jobs import TrainCommand, TrainEvent, TrainEventType
from .pace import Pace
from .run import Pieces, Run


def gradients(
    run: Run, command: TrainCommand, batch: Sequence[int], pace: Pace, report: Callable[[TrainEvent], object]
) -> Pieces[float]:
    """Leave the gradients of the rows ``batch`` in the parameters; gives the loss a token.

    When memory runs out, the step is done once more in parts half as large, and the run keeps to that size. Raises
    RESOURCE_EXHAUSTED when it runs out again.
    """
    for _ in range(2):
        try:
            return (yield from _parts(run, command, batch, pace))
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
        # Out of the handler, so that the failed pass and its activations are gone.
        run.optimizer.zero_grad(set_to_none=True)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if not pace.shrink():
            break
        words = "out of memory in a training step: it is done again in smaller parts"
        report(TrainEvent(TrainEventType.MESSAGE, words, None, run.step, run.order.total_steps))
    raise Error(
        Code.RESOURCE_EXHAUSTED,
        "out of memory in a training step, also with smaller parts of the batch; train on shorter rows, on fewer"
        " layers or with a lower rank",
        reason="OUT_OF_MEMORY",
    )


def _parts(run: Run, command: TrainCommand, batch: Sequence[int], pace: Pace) -> Pieces[float]:
    rows = command.rows
    learned = sum(sum(rows[i].labels[1:]) for i in batch)
    loss = 0.0
    for part in pace.split(batch, run.lengths):
        with pace.measure(sum(len(rows[i].input_ids) for i in part)):
            seeds = [run.order.dropout_seed(run.step, i) for i in part]
            found = run.rows.loss([rows[i] for i in part], [run.stacks[i] for i in part], run.adapter, seeds)
            # Weighted by tokens over the whole batch, however it was split.
            (found.total / learned).backward()
            loss += float(found.total.detach()) / learned
        yield run.nbytes
    return loss


def out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out; on the host torch has no type of its own for it."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "allocate memory" in str(error)
