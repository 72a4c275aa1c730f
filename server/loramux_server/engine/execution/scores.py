"""Log-probabilities of scoring requests, collected chunk by chunk until each is complete."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ...core.backend import ScoreResult
from ...core.errors import LOGITS_NOT_FINITE, Code, Error
from ...core.types import Stack
from ..scheduling.plan import StepPlan
from ..scheduling.sequence import Sequence
from ..transport.protocol import Output


def not_finite(stack: Stack) -> Error:
    """The failure of a request whose logits are not finite: of its adapters if it has any, else of the server."""
    if not stack:
        return Error(Code.INTERNAL, "the base gave logits that are not finite", reason=LOGITS_NOT_FINITE)
    names = ", ".join(entry.adapter.ref for entry in stack.entries)
    return Error(
        Code.FAILED_PRECONDITION,
        f"the logits are not finite with this stack ({names}): its values are too large for the model; give smaller"
        " weights, or leave an adapter out",
        reason=LOGITS_NOT_FINITE,
    )


class ScoreCollector:
    """What is known so far of every live scoring request, which ``get`` finds by id.

    ``finish`` takes one out that is complete, ``end`` one that failed.
    """

    def __init__(
        self,
        get: Callable[[str], Sequence | None],
        finish: Callable[[Sequence], None],
        end: Callable[[Sequence, Error], None],
        emit: Callable[[Output], None],
    ) -> None:
        self._get, self._finish, self._end, self._emit = get, finish, end, emit
        self._found: dict[str, list[tuple[float, bool]]] = {}

    def __len__(self) -> int:
        """Requests that are open."""
        return len(self._found)

    def open(self, seq: Sequence) -> None:
        """Begin a sequence, if it is one to score."""
        if seq.score_from is not None:
            self._found[seq.id] = []

    def close(self, id: str) -> None:
        """The sequence is over. Unknown ids are fine."""
        self._found.pop(id, None)

    def collect(self, plan: StepPlan, logits: Mapping[str, Tensor]) -> None:
        """Take in a step that is computed: ``logits`` [positions, vocabulary] of each id; answer what is complete."""
        for work in plan.work:
            seq = self._get(work.id)
            if seq is None or seq.score_from is None:
                continue
            try:
                if work.scored:
                    self._add(seq, work.scored.start + 1, logits[work.id].float())
            except Error as error:
                self._end(seq, error)
                continue
            if seq.num_computed == len(seq.tokens):
                found = self._found[seq.id]
                logprobs, greedy = tuple(p for p, _ in found), tuple(g for _, g in found)
                result = ScoreResult(logprobs, greedy, seq.times(time.monotonic()))
                self._finish(seq)
                self._emit(Output(seq.id, result, done=True))

    def _add(self, seq: Sequence, position: int, logits: Tensor) -> None:
        """Score the tokens from ``position`` on. Raises what :func:`not_finite` says."""
        assert seq.score_from is not None
        targets = torch.tensor(seq.tokens[position : position + len(logits)], device=logits.device)
        logprobs = logits.log_softmax(-1).gather(-1, targets[:, None]).flatten()
        if bool(logprobs.isnan().any()):
            raise not_finite(seq.stack)
        # Preemption computes a chunk again: what is known already is not added twice.
        found = self._found[seq.id]
        known = len(found) - (position - seq.score_from)
        pairs = zip(logprobs.tolist(), (logits.argmax(-1) == targets).tolist(), strict=True)
        found += list(pairs)[max(known, 0) :]
