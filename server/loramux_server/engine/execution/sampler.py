"""From logits to tokens, each row by its own request's settings and its own random stream.

Order, as in transformers: grammar, minimum length, bias, penalties; then temperature, top_k, top_p, min_p. A random
number depends on (seed, output position) alone, through the counter-based Philox generator (Salmon et al., SC'11), so
a sample is the same alone, in any batch, and after preemption. Log-probabilities are of the raw logits.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...core.types import TokenLogprob
from ..scheduling.sequence import Sequence
from .adjustments import adjust, adjusts, forbid

CANDIDATES = 1024
"""Tokens that top_k, top_p and min_p look at before a full sort is needed."""

_NO_MASKS: Mapping[int, bytes] = {}


@dataclass(frozen=True, slots=True)
class SampledToken:
    """The next token of one row; ``token`` is None where the row's logits are not finite."""

    token: int | None
    logprob: TokenLogprob | None = None


def sample(
    logits: Tensor, seqs: Seq[Sequence], eos: Collection[int], masks: Mapping[int, bytes] = _NO_MASKS
) -> list[SampledToken]:
    """Choose one token per row of ``logits`` [rows, vocabulary]; row i belongs to ``seqs[i]``.

    ``masks[i]``, where there is one, has a bit for each token that row i may take, the lowest first. The device is
    waited for once, and once more where a row's candidates do not suffice.
    """
    best, chosen = logits.max(dim=-1)  # NaN wins every comparison, so a finite maximum vouches for the row
    special = [i for i, s in enumerate(seqs) if i in masks or adjusts(s)]
    random = [i for i, s in enumerate(seqs) if s.sampling.temperature > 0]
    rows = sorted({*special, *random})
    short: Tensor | None = None
    if rows:
        at = {row: place for place, row in enumerate(rows)}
        work = logits[rows].float()
        forbid(work, {at[i]: masks[i] for i in special if i in masks})
        adjust(work, {at[i]: seqs[i] for i in special if adjusts(seqs[i])}, eos)
        picked = work.argmax(dim=-1)
        if random:
            where = [at[i] for i in random]
            drawn, short = _draw(work[where], [seqs[i] for i in random])
            picked[where] = drawn
        chosen[rows] = picked
    tokens, finite = torch.stack((chosen, torch.isfinite(best).long())).tolist()
    if short is not None and (again := [i for i, more in enumerate(short.tolist()) if more and finite[random[i]]]):
        whole, _ = _draw(work[[at[random[i]] for i in again]], [seqs[random[i]] for i in again], logits.shape[-1])
        for i, token in zip(again, whole.tolist(), strict=True):
            tokens[random[i]] = token
    logprobs = _logprobs(logits, [i for i in range(len(seqs)) if finite[i]], seqs, tokens)
    return [SampledToken(tokens[i] if finite[i] else None, logprobs.get(i)) for i in range(len(seqs))]


def _draw(logits: Tensor, seqs: Seq[Sequence], candidates: int = CANDIDATES) -> tuple[Tensor, Tensor]:
    """Sample each row of ``logits`` [rows, vocabulary] by inverse transform; True where more candidates are needed."""
    device, vocabulary = logits.device, logits.shape[-1]
    temperature, points = _column(seqs, lambda s: s.sampling.temperature, device), _column(seqs, _uniform, device)
    scaled = (logits - logits.max(dim=-1, keepdim=True).values) / temperature.to(logits.dtype)  # so nothing overflows
    tokens = torch.zeros(len(seqs), dtype=torch.long, device=device)
    short = torch.zeros(len(seqs), dtype=torch.bool, device=device)
    plain = [i for i, s in enumerate(seqs) if not _truncates(s, vocabulary)]
    if plain:
        mass = scaled[plain].double().exp().cumsum(-1)
        tokens[plain] = _invert(mass, points[plain], torch.full((len(plain),), vocabulary, device=device))
    by_count: dict[int, list[int]] = {}
    for i, s in enumerate(seqs):
        if _truncates(s, vocabulary):
            # A row's own number: how ties at the border are broken must not depend on its batch mates.
            by_count.setdefault(min(max(candidates, s.sampling.top_k), vocabulary), []).append(i)
    for count, rows in by_count.items():
        tokens[rows], short[rows] = _draw_truncated(scaled[rows], [seqs[i] for i in rows], points[rows], count)
    return tokens, short


def _truncates(seq: Sequence, vocabulary: int) -> bool:
    s = seq.sampling
    return 0 < s.top_k < vocabulary or s.top_p < 1.0 or s.min_p > 0.0


def _draw_truncated(scaled: Tensor, seqs: Seq[Sequence], points: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Sample rows [rows, vocabulary] (largest value 0) after top_k, top_p and min_p, among ``count`` candidates."""
    device, vocabulary = scaled.device, scaled.shape[-1]
    values, ids = scaled.topk(count)
    weights = values.double().exp()
    k = _column(seqs, lambda s: s.sampling.top_k if 0 < s.sampling.top_k < vocabulary else vocabulary, device)
    inside = torch.arange(count, device=device) < k
    whole = (weights * inside).sum(-1, keepdim=True)
    if any(s.sampling.top_p < 1.0 and not 0 < s.sampling.top_k <= count for s in seqs):
        whole = torch.where(k <= count, whole, scaled.double().exp().sum(-1, keepdim=True))
    # A token stays while the mass before it is below top_p: the smallest set that reaches it.
    before = weights.cumsum(-1) - weights
    top_p = _column(seqs, lambda s: s.sampling.top_p, device)
    inside &= (top_p >= 1.0) | (before < top_p * whole)
    inside &= weights >= _column(seqs, lambda s: s.sampling.min_p, device)
    inside[:, 0] = True  # the most likely token, whatever the numbers
    short = inside[:, -1] & (k.flatten() > count) if count < vocabulary else torch.zeros_like(inside[:, -1])
    found = _invert((weights * inside).cumsum(-1), points, inside.sum(-1))
    return ids.gather(-1, found[:, None]).flatten(), short


def _invert(mass: Tensor, points: Tensor, counts: Tensor) -> Tensor:
    """Index per row of the cumulative, unnormalised ``mass`` [rows, n] at ``points`` [rows, 1], below ``counts``."""
    found = torch.searchsorted(mass, points * mass[:, -1:], right=True).flatten()
    return torch.minimum(found, counts - 1)


def _column(seqs: Seq[Sequence], of: Callable[[Sequence], float], device: torch.device) -> Tensor:
    """A number of each sequence, float64 [rows, 1]."""
    return torch.tensor([of(s) for s in seqs], dtype=torch.float64, device=device)[:, None]


def _uniform(seq: Sequence) -> float:
    """A number in [0, 1) for this seed and output position."""
    return float(np.random.Generator(np.random.Philox(key=seq.seed % 2**64, counter=seq.num_output)).random())


def _logprobs(logits: Tensor, rows: Seq[int], seqs: Seq[Sequence], chosen: Seq[int]) -> dict[int, TokenLogprob]:
    wanted = {i: n for i in rows if (n := seqs[i].sampling.logprobs) is not None}
    if not wanted:
        return {}
    where = list(wanted)
    all_of = logits[where].float().log_softmax(-1)
    values, ids = all_of.topk(max(wanted.values()))
    own = all_of.gather(-1, torch.tensor([[chosen[i]] for i in where], device=logits.device)).flatten().tolist()
    found = zip(where, own, ids.tolist(), values.tolist(), strict=True)
    return {
        i: TokenLogprob(chosen[i], logprob, tuple(zip(top, those, strict=True))[: wanted[i]])
        for i, logprob, top, those in found
    }
