"""Log-probabilities of scoring requests, collected chunk by chunk until each is complete."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ...core.backend import ScoreResult
from ...core.errors import Error
from ..memory_pressure import MemoryPressure
from ..scheduling.plan import StepPlan
from ..scheduling.sequence import Sequence
from ..transport.protocol import Output
from .failures import no_memory, not_finite


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
        pressure: MemoryPressure,
    ) -> None:
        self._get, self._finish, self._end, self._emit, self._pressure = get, finish, end, emit, pressure
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
                    self._add(seq, work.scored.start + 1, logits[work.id])
            except Error as error:
                self._end(seq, error)
                continue
            if seq.num_computed == len(seq.tokens):
                found = self._found[seq.id]
                logprobs, greedy = tuple(p for p, _ in found), tuple(g for _, g in found)
                result = ScoreResult(logprobs, greedy, seq.times(time.monotonic()), seq.num_cached)
                self._finish(seq)
                self._emit(Output(seq.id, result, done=True))

    def _add(self, seq: Sequence, position: int, logits: Tensor) -> None:
        """Score the tokens from ``position`` on. Raises :func:`not_finite` and :func:`no_memory`."""
        assert seq.score_from is not None
        targets = seq.tokens[position : position + len(logits)]
        pairs: list[tuple[float, bool]] = []
        for _, part in self._pressure.in_halves(
            len(targets), lambda rows: _score_rows(logits[rows].float(), targets[rows])
        ):
            if part is None:
                raise no_memory()
            pairs += part
        if any(logprob != logprob for logprob, _ in pairs):
            raise not_finite(seq.stack)
        # Preemption computes a chunk again: what is known already is not added twice.
        found = self._found[seq.id]
        known = len(found) - (position - seq.score_from)
        found += pairs[max(known, 0) :]


def _score_rows(logits: Tensor, tokens: list[int]) -> list[tuple[float, bool]]:
    """Log-probability of each row's token in ``logits`` [rows, vocabulary], and whether it is the most likely one."""
    targets = torch.tensor(tokens, device=logits.device)
    logprobs = logits.log_softmax(-1).gather(-1, targets[:, None]).flatten()
    return list(zip(logprobs.tolist(), (logits.argmax(-1) == targets).tolist(), strict=True))
