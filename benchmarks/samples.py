"""From the times of single requests to figures. Times in seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median, quantiles


@dataclass(frozen=True, slots=True)
class Sample:
    """One request: time to its first token, times between tokens, the tokens that came."""

    first: float
    gaps: tuple[float, ...]
    tokens: tuple[int, ...]
    prompt_tokens: int = 0


class Stopwatch:
    """Times one request from its making on. Tokens that come together share the time since those before them."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._begin = self._last = clock()
        self._first = 0.0
        self._gaps: list[float] = []
        self._tokens: list[int] = []

    def tokens(self, ids: Sequence[int]) -> None:
        """These tokens came now."""
        if not ids:
            return
        now, gaps = self._clock(), len(ids)
        if not self._tokens:
            # What came beside the first token came at the same moment.
            self._first, self._last, gaps = now - self._begin, now, gaps - 1
        self._gaps += [(now - self._last) / len(ids)] * gaps
        self._tokens += ids
        self._last = now

    def sample(self, prompt_tokens: int = 0) -> Sample:
        """The request is done."""
        return Sample(self._first, tuple(self._gaps), tuple(self._tokens), prompt_tokens)


@dataclass(frozen=True, slots=True)
class Figures:
    """Many requests in one number each. Tokens are generated ones."""

    requests: int
    tokens: int
    seconds: float
    tokens_per_second: float
    first_p50: float
    first_p95: float
    gap_p50: float
    gap_p95: float


def summarise(samples: Sequence[Sample], seconds: float) -> Figures:
    """Figures of requests that took ``seconds`` together, which overlap in time. Raises ValueError without samples."""
    if not samples or seconds <= 0:
        raise ValueError("nothing was measured")
    tokens = sum(len(s.tokens) for s in samples)
    firsts = [s.first for s in samples]
    gaps = [gap for s in samples for gap in s.gaps]
    return Figures(
        requests=len(samples),
        tokens=tokens,
        seconds=seconds,
        tokens_per_second=tokens / seconds,
        first_p50=median(firsts),
        first_p95=p95(firsts),
        gap_p50=median(gaps) if gaps else 0.0,
        gap_p95=p95(gaps) if gaps else 0.0,
    )


def p95(values: Sequence[float]) -> float:
    """The 95th percentile, never beyond the largest value; that of a single value is the value."""
    return quantiles(values, n=20, method="inclusive")[-1] if len(values) > 1 else values[0]


def agreement(left: Sequence[Sequence[int]], right: Sequence[Sequence[int]]) -> float:
    """Share of tokens, request by request, before two systems first differ: 1.0 means the same answers."""
    same = total = 0
    for a, b in zip(left, right, strict=True):
        total += max(len(a), len(b))
        same += next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    return same / total if total else 0.0
