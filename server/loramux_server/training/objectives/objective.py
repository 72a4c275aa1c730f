"""The objectives of training (SFT, DPO, distillation): from log-probabilities of rows to a loss.

Losses and metrics are sums over rows, divided later by the denominator of the whole batch. So a batch has the same
loss however it was split into micro-batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ...core.jobs import TrainRow, TrainSpec
from ..backprop.micro_batch import RowLogprobs


@dataclass(frozen=True, slots=True)
class LossSums:
    """The loss of some rows, not yet divided by the denominator."""

    loss: Tensor  # scalar; requires grad while training
    metrics: dict[str, float]  # sums of what is reported, the loss among them


class Objective(Protocol):
    """How rows become a loss."""

    needs_reference: bool
    """Whether the loss compares with log-probabilities of the model before training."""
    needs_teacher: bool
    """Whether a teacher's distributions take the place of the rows' tokens: see :class:`~.teacher.Teacher`."""

    def inputs(self, row: TrainRow) -> tuple[TrainRow, ...]:
        """What the model reads for a row, all in one micro-batch: the row, or both answers of a preference pair."""
        ...

    def denominator(self, row: TrainRow) -> int:
        """What a row adds to the number by which sums are divided."""
        ...

    def loss(self, logprobs: RowLogprobs, reference: Sequence[tuple[float, ...]]) -> LossSums:
        """The loss of rows from the ``logprobs`` of their inputs.

        ``reference[i]`` has the log-probabilities of row i's inputs before training, and is empty where none is needed.
        """
        ...


class Sft:
    """Cross-entropy of the loss tokens, averaged over tokens."""

    needs_reference = False
    needs_teacher = False
    _agreement = "token_accuracy"

    def inputs(self, row: TrainRow) -> tuple[TrainRow, ...]:
        return (row,)

    def denominator(self, row: TrainRow) -> int:
        return sum(row.labels[1:])

    def loss(self, logprobs: RowLogprobs, reference: Sequence[tuple[float, ...]]) -> LossSums:
        loss = -logprobs.logprobs.sum()
        return LossSums(loss, {"loss": float(loss.detach()), self._agreement: float(sum(logprobs.correct))})


class Distillation(Sft):
    """KL(teacher || student) over the whole vocabulary at the loss tokens, averaged over tokens.

    The teacher is the frozen stack of a row with the context before it, the student the adapter without the context
    (context distillation: arXiv 2112.00861 and 2209.15189). This direction, the forward one, has the student cover all
    that the teacher may say; it has the gradient of SFT with the teacher's distribution in place of one token.
    """

    needs_teacher = True
    _agreement = "teacher_agreement"


class Dpo:
    """The sigmoid loss of direct preference optimisation (arXiv 2305.18290, equation 7), averaged over pairs.

    The reward of an answer is ``beta`` times its gain in log-probability over the reference. The reference is the model
    before training: the frozen stack with the version that the job starts from (``init_from``), or without an adapter.
    """

    needs_reference = True
    needs_teacher = False

    def __init__(self, beta: float) -> None:
        self._beta = beta

    def inputs(self, row: TrainRow) -> tuple[TrainRow, ...]:
        assert row.rejected is not None
        return row, row.rejected

    def denominator(self, row: TrainRow) -> int:
        return 1

    def loss(self, logprobs: RowLogprobs, reference: Sequence[tuple[float, ...]]) -> LossSums:
        pairs = logprobs.logprobs.view(-1, 2)  # [pairs, chosen and rejected]
        rewards = self._beta * (pairs - torch.tensor(reference, device=pairs.device))
        margins = rewards[:, 0] - rewards[:, 1]
        loss = -logsigmoid(margins).sum()
        chosen, rejected = rewards.detach().sum(0).tolist()
        metrics = {
            "loss": float(loss.detach()),
            "rewards_accuracy": float((margins > 0).sum()),
            "rewards_margin": chosen - rejected,
            "rewards_chosen": chosen,
            "rewards_rejected": rejected,
        }
        return LossSums(loss, metrics)


def objective_of(spec: TrainSpec) -> Objective:
    """The objective that the job's ``method`` names."""
    match spec.method:
        case "dpo":
            return Dpo(spec.beta)
        case "distill":
            return Distillation()
        case _:
            return Sft()
