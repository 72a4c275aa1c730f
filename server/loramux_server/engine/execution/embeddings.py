"""Embeddings of requests: hidden states pooled chunk by chunk until each request's last token is computed."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ...core.backend import EmbedResult
from ...core.errors import Error
from ..memory_pressure import MemoryPressure
from ..scheduling.plan import StepPlan
from ..scheduling.sequence import Sequence
from ..transport.protocol import Output
from .failures import no_memory, not_finite


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
        pressure: MemoryPressure,
    ) -> None:
        self._get, self._finish, self._end, self._emit, self._pressure = get, finish, end, emit, pressure
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
            try:
                if work.pooled:
                    self._add(pooled, states[work.id])
                if seq.num_computed == len(seq.tokens):
                    self._answer(seq, pooled)
            except Error as error:
                self._end(seq, error)

    def _add(self, pooled: _Pooled, states: Tensor) -> None:
        """Add ``states`` [positions, hidden] to a sum. Raises :func:`no_memory`."""
        sums = self._pressure.in_halves(len(states), lambda rows: states[rows].double().sum(0))
        for _, part in sums:
            if part is None:
                raise no_memory()
            pooled.total = part if pooled.total is None else pooled.total + part
        pooled.count += len(states)

    def _answer(self, seq: Sequence, pooled: _Pooled) -> None:
        """Answer with what is pooled. Raises :func:`not_finite` and :func:`no_memory`."""
        assert pooled.total is not None
        mean = pooled.total / pooled.count
        found = self._pressure.attempt(lambda: _embedding(mean, seq.normalize))
        if found is None:
            raise no_memory()
        if not bool(found.isfinite().all()):
            raise not_finite(seq.stack)
        self._finish(seq)
        result = EmbedResult(found.numpy().astype("<f4").tobytes(), seq.times(time.monotonic()))
        self._emit(Output(seq.id, result, done=True))


def _embedding(mean: Tensor, normalize: bool) -> Tensor:
    """The float32 embedding [hidden] on the host."""
    if normalize:
        mean = mean / mean.norm().clamp_min(torch.finfo(torch.float32).tiny)
    return mean.float().cpu()
