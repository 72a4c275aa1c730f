"""What a job learns by: the loss of rows from how likely the model finds them.

Figures are sums over rows beside the number that they are divided by, so that a batch has the same means however it
was split.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ..core.jobs import TrainRow, TrainSpec
from .step import Scores


@dataclass(frozen=True, slots=True)
class Measured:
    """Rows, measured: the summed loss, and sums of what is reported, the loss among them."""

    total: Tensor  # scalar, with gradient while training
    sums: dict[str, float]


class Objective(Protocol):
    """How rows become a loss."""

    referenced: bool
    """Whether it compares with what the model says without the job's training."""

    def texts(self, row: TrainRow) -> tuple[TrainRow, ...]:
        """What the model reads for a row, in one pass."""
        ...

    def count(self, row: TrainRow) -> int:
        """A row's part in the number by which sums are divided."""
        ...

    def measure(self, scores: Scores, reference: Sequence[tuple[float, ...]]) -> Measured:
        """``scores`` are those of the rows' texts, ``reference`` their log-probabilities without the training."""
        ...


class Sft:
    """Cross-entropy of the learned tokens, averaged over tokens."""

    referenced = False

    def texts(self, row: TrainRow) -> tuple[TrainRow, ...]:
        return (row,)

    def count(self, row: TrainRow) -> int:
        return sum(row.labels[1:])

    def measure(self, scores: Scores, reference: Sequence[tuple[float, ...]]) -> Measured:
        total = -scores.logprobs.sum()
        return Measured(total, {"loss": float(total.detach()), "token_accuracy": float(sum(scores.correct))})


class Dpo:
    """The sigmoid loss of direct preference optimisation (arXiv 2305.18290, equation 7), averaged over pairs.

    A text's reward is ``beta`` times how much likelier it is than by the reference: the same weights before training,
    which are the version that the job goes on from, or no adapter.
    """

    referenced = True

    def __init__(self, beta: float) -> None:
        self._beta = beta

    def texts(self, row: TrainRow) -> tuple[TrainRow, ...]:
        assert row.rejected is not None
        return row, row.rejected

    def count(self, row: TrainRow) -> int:
        return 1

    def measure(self, scores: Scores, reference: Sequence[tuple[float, ...]]) -> Measured:
        logprobs = scores.logprobs.view(-1, 2)
        rewards = self._beta * (logprobs - torch.tensor(reference, device=logprobs.device))  # [pairs, 2]
        margins = rewards[:, 0] - rewards[:, 1]
        total = -logsigmoid(margins).sum()
        chosen, rejected = rewards.detach().sum(0).tolist()
        sums = {
            "loss": float(total.detach()),
            "rewards_accuracy": float((margins > 0).sum()),
            "rewards_margin": chosen - rejected,
            "rewards_chosen": chosen,
            "rewards_rejected": rejected,
        }
        return Measured(total, sums)


def objective_of(spec: TrainSpec) -> Objective:
    """The objective that a job's settings name."""
    return Dpo(spec.beta) if spec.method == "dpo" else Sft()
