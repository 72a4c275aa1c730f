"""From logits to tokens, each row by its own request's settings and its own random stream.

Order, as in transformers: grammar, minimum length, bias, penalties; then temperature, top_k, top_p, min_p. A random
number depends on (seed, output position) alone, through the counter-based Philox generator (Salmon et al., SC'11), so
a sample is the same alone, in any batch, and after preemption. Log-probabilities are of the raw logits.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...core.types import TokenLogprob
from ..scheduling.sequence import Sequence

CANDIDATES = 1024
"""Tokens that top_k/top_p/min_p look at before a full sort is needed."""

LARGEST = 1e30
"""Of an adjusted logit: a tiny penalty makes an infinite one, and differences of those are no numbers."""

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

    ``masks[i]``, where there is one, has a bit for each token that row i may take, the lowest first.
    """
    best, tokens = logits.max(dim=-1)  # NaN wins every comparison, so a finite maximum vouches for the row
    finite = torch.isfinite(best).tolist()
    chosen: list[int] = tokens.tolist()
    special = [i for i, s in enumerate(seqs) if finite[i] and (i in masks or _adjusts(s))]
    random = [i for i, s in enumerate(seqs) if finite[i] and s.sampling.temperature > 0]
    rows = sorted({*special, *random})
    if rows:
        work = logits[rows].float()
        for at, i in enumerate(rows):
            if i in masks:
                _forbid(work[at], masks[i])
            if _adjusts(seqs[i]):
                _adjust(work[at], seqs[i], eos)
                work[at].clamp_(max=LARGEST)
            if i in masks or _adjusts(seqs[i]):
                chosen[i] = int(work[at].argmax())
        at_random = [at for at, i in enumerate(rows) if seqs[i].sampling.temperature > 0]
        if at_random:
            drawn = _draw(work[at_random], [seqs[rows[at]] for at in at_random])
            for at, token in zip(at_random, drawn, strict=True):
                chosen[rows[at]] = token
    logprobs = _logprobs(logits, [i for i, s in enumerate(seqs) if finite[i]], seqs, chosen)
    return [SampledToken(chosen[i] if finite[i] else None, logprobs.get(i)) for i in range(len(seqs))]


def _forbid(row: Tensor, mask: bytes) -> None:
    """Take out of ``row`` [vocabulary] every token whose bit is not set, in place."""
    bits = np.unpackbits(np.frombuffer(mask, dtype=np.uint8), count=len(row), bitorder="little")
    row[torch.from_numpy(bits == 0).to(row.device)] = -torch.inf


def _adjusts(seq: Sequence) -> bool:
    s = seq.sampling
    return (
        s.repetition_penalty != 1.0
        or s.presence_penalty != 0.0
        or s.frequency_penalty != 0.0
        or bool(s.logit_bias)
        or seq.num_output < s.min_tokens
    )


def _adjust(row: Tensor, seq: Sequence, eos: Collection[int]) -> None:
    """Apply minimum length, bias and penalties to ``row`` [vocabulary] in place."""
    s = seq.sampling
    if seq.num_output < s.min_tokens:
        ends = list(s.end_ids(eos, seq.grammar is not None) | set(eos))
        kept = row[ends]
        row[ends] = -torch.inf
        if row.max() == -torch.inf:  # the grammar leaves nothing else
            row[ends] = kept
    for token, bias in s.logit_bias:
        row[token] += bias
    if s.repetition_penalty != 1.0:
        seen = torch.tensor(sorted(set(seq.tokens)), device=row.device)
        values = row[seen]
        row[seen] = torch.where(values > 0, values / s.repetition_penalty, values * s.repetition_penalty)
    if s.presence_penalty or s.frequency_penalty:
        output = torch.tensor(seq.tokens[seq.prompt_length :], dtype=torch.long, device=row.device)
        ids, counts = output.unique(return_counts=True)
        row[ids] -= s.presence_penalty + s.frequency_penalty * counts


def _draw(logits: Tensor, seqs: Seq[Sequence]) -> list[int]:
    """Sample each row of ``logits`` [rows, vocabulary] by inverse transform."""
    temperature = torch.tensor([s.sampling.temperature for s in seqs], device=logits.device)[:, None]
    scaled = (logits - logits.max(dim=-1, keepdim=True).values) / temperature  # first less, then divided: no overflow
    tokens: list[int] = [0] * len(seqs)
    plain = [i for i, s in enumerate(seqs) if not _truncates(s, logits.shape[-1])]
    if plain:
        mass = scaled[plain].double().exp().cumsum(-1)
        for i, token in zip(plain, _invert(mass, [seqs[i] for i in plain]), strict=True):
            tokens[i] = token
    cut = [i for i in range(len(seqs)) if i not in set(plain)]
    for i in cut:
        tokens[i] = _draw_truncated(scaled[i], seqs[i])
    return tokens


def _truncates(seq: Sequence, vocabulary: int) -> bool:
    s = seq.sampling
    return 0 < s.top_k < vocabulary or s.top_p < 1.0 or s.min_p > 0.0


def _draw_truncated(scaled: Tensor, seq: Sequence) -> int:
    """Sample one row [vocabulary] (largest value 0) after top_k, top_p and min_p."""
    s = seq.sampling
    vocabulary = scaled.shape[-1]
    total = scaled.double().exp().sum()
    count = min(max(CANDIDATES, s.top_k), vocabulary)
    while True:
        values, ids = scaled.topk(count)
        weights = values.double().exp()
        k = s.top_k if 0 < s.top_k < vocabulary else vocabulary
        inside = torch.arange(count, device=scaled.device) < k
        whole = weights[inside].sum() if k <= count else total
        # A token stays while the mass before it is below top_p: the smallest set that reaches it.
        before = weights.cumsum(0) - weights
        inside &= before < s.top_p * whole
        inside &= weights >= s.min_p
        inside[0] = True  # the most likely token, whatever the numbers
        if count == vocabulary or not bool(inside[-1]) or k <= count:
            break
        count = vocabulary
    kept = weights[inside]
    return int(ids[_invert(kept.cumsum(0)[None], [seq])[0]])


def _invert(mass: Tensor, seqs: Seq[Sequence]) -> list[int]:
    """Index per row of the cumulative, unnormalised ``mass`` [rows, n] at the row's own random point."""
    points = torch.tensor([_uniform(s) for s in seqs], dtype=mass.dtype, device=mass.device)[:, None]
    found = torch.searchsorted(mass, points * mass[:, -1:], right=True)
    return [int(i) for i in found.clamp(max=mass.shape[-1] - 1).flatten()]


def _uniform(seq: Sequence) -> float:
    """A number in [0, 1) for this seed and output position."""
    return float(np.random.Generator(np.random.Philox(key=seq.seed % 2**64, counter=seq.num_output)).random())


def _logprobs(logits: Tensor, rows: Seq[int], seqs: Seq[Sequence], chosen: Seq[int]) -> dict[int, TokenLogprob]:
    wanted = [i for i in rows if seqs[i].sampling.logprobs is not None]
    found: dict[int, TokenLogprob] = {}
    for i in wanted:
        row = logits[i].float().log_softmax(-1)
        count = seqs[i].sampling.logprobs or 0
        values, ids = row.topk(count)
        top = tuple(zip(ids.tolist(), values.tolist(), strict=True))
        found[i] = TokenLogprob(chosen[i], float(row[chosen[i]]), top)
    return found
