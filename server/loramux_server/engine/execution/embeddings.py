"""Embeddings of requests: hidden states pooled chunk by chunk until each request's last token is computed."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ...core.backend import EmbedResult
from ...core.errors import Error
from ..scheduling.plan import StepPlan
from ..scheduling.sequence import Sequence
from ..transport.protocol import Output
from .scores import not_finite


@dataclass(slots=True)
class _Pooled:
    """Hidden states [hidden] summed so far in float64, so that how a text is cut into chunks does not show."""

    total: Tensor | None = None
    count: int = 0


class EmbeddingCollector:
    """What is pooled so far of every live request for an embedding, which ``get`` finds by id.

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
        self._pooled: dict[str, _Pooled] = {}

    def __len__(self) -> int:
        """Requests of which something is pooled."""
        return len(self._pooled)

    def close(self, id: str) -> None:
        """The sequence is over. Unknown ids are fine."""
        self._pooled.pop(id, None)

    def collect(self, plan: StepPlan, states: Mapping[str, Tensor]) -> None:
        """Take in a step that is computed: ``states`` [positions, hidden] of each id; answer what is complete."""
        for work in plan.work:
            seq = self._get(work.id)
            if seq is None or seq.pooling is None:
                continue
            if work.start == 0:
                self._pooled[seq.id] = _Pooled()  # also after a preemption, which begins anew
            pooled = self._pooled[seq.id]
            if work.pooled:
                chunk = states[work.id].double().sum(0)
                pooled.total = chunk if pooled.total is None else pooled.total + chunk
                pooled.count += len(work.pooled)
            if seq.num_computed == len(seq.tokens):
                self._answer(seq, pooled)

    def _answer(self, seq: Sequence, pooled: _Pooled) -> None:
        assert pooled.total is not None
        found = pooled.total / pooled.count
        if seq.normalize:
            found = found / found.norm().clamp_min(torch.finfo(torch.float32).tiny)
        found = found.float().cpu()
        if not bool(found.isfinite().all()):
            self._end(seq, not_finite(seq.stack))
            return
        self._finish(seq)
        result = EmbedResult(found.numpy().astype("<f4").tobytes(), seq.times(time.monotonic()))
        self._emit(Output(seq.id, result, done=True))
