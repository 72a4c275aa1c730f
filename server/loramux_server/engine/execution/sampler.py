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
from ...lora.buffers import on_device
from ..scheduling.sequence import Sequence
from .adjustments import adjust, adjusts, forbid
from .readback import Readback

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
    """Choose one token per row of ``logits`` and wait for them: see :class:`Sampling`."""
    sampling = Sampling(logits, seqs, eos, masks)
    if short := sampling.wait():
        sampling.redraw(short)
    return sampling.read()


class Sampling:
    """A token for each row of ``logits`` [rows, vocabulary], being chosen on the device; row i belongs to ``seqs[i]``.

    ``masks[i]``, where there is one, has a bit for each token that row i may take, the lowest first. Making it waits
    for nothing. The tokens of ``seqs`` must not change until all is read.
    """

    def __init__(
        self, logits: Tensor, seqs: Seq[Sequence], eos: Collection[int], masks: Mapping[int, bytes] = _NO_MASKS
    ) -> None:
        device = logits.device
        best, chosen = logits.max(dim=-1)  # NaN wins every comparison, so a finite maximum vouches for the row
        finite, short = torch.isfinite(best).long(), torch.zeros_like(chosen)
        special = [i for i, s in enumerate(seqs) if i in masks or adjusts(s)]
        random = [i for i, s in enumerate(seqs) if s.sampling.temperature > 0]
        self._seqs, self._random, self._drawn_from = seqs, random, logits[:0]
        if rows := sorted({*special, *random}):
            at = {row: place for place, row in enumerate(rows)}
            these = on_device(rows, device)
            work = logits[these].float()
            forbid(work, {at[i]: masks[i] for i in special if i in masks})
            adjust(work, {at[i]: seqs[i] for i in special if adjusts(seqs[i])}, eos)
            picked = work.argmax(dim=-1)
            if random:
                where = on_device([at[i] for i in random], device)
                self._drawn_from = work[where]
                drawn, needs_more = _draw(self._drawn_from, [seqs[i] for i in random])
                picked[where] = drawn
                short[on_device(random, device)] = needs_more.long()
            chosen[these] = picked
        self.tokens = chosen
        """The tokens, [rows] on the device, but for those that are ``redrawn``."""
        self.redrawn: set[int] = set()
        """Rows whose token became another one by :meth:`redraw`."""
        self._told = Readback(torch.stack((chosen, finite, short)))
        wanted = {i: n for i, s in enumerate(seqs) if (n := s.sampling.logprobs) is not None}
        self._logprobs = _Logprobs(logits, chosen, wanted) if wanted else None

    def wait(self) -> list[int]:
        """Wait until the host has the tokens. Gives the rows whose candidates do not suffice: see :meth:`redraw`."""
        self._found, self._finite, short = self._told.wait().tolist()
        return [i for i in self._random if short[i] and self._finite[i]]

    def redraw(self, rows: Seq[int]) -> None:
        """Draw the tokens of some rows among the whole vocabulary, and wait for them."""
        drawn_from = self._drawn_from[[self._random.index(i) for i in rows]]
        whole, _ = _draw(drawn_from, [self._seqs[i] for i in rows], drawn_from.shape[-1])
        for i, token in zip(rows, whole.tolist(), strict=True):
            self.redrawn |= {i} if token != self._found[i] else set()
            self._found[i] = token

    def read(self) -> list[SampledToken]:
        """The tokens, which were waited for."""
        logprobs = {} if self._logprobs is None else self._logprobs.read(self._found)
        return [
            SampledToken(token, logprobs.get(i)) if fine else SampledToken(None)
            for i, (token, fine) in enumerate(zip(self._found, self._finite, strict=True))
        ]


def _draw(logits: Tensor, seqs: Seq[Sequence], candidates: int = CANDIDATES) -> tuple[Tensor, Tensor]:
    """Sample each row of ``logits`` [rows, vocabulary] by inverse transform; True where more candidates are needed."""
    device, vocabulary = logits.device, logits.shape[-1]
    temperature, points = _column(seqs, lambda s: s.sampling.temperature, device), _column(seqs, _uniform, device)
    scaled = (logits - logits.max(dim=-1, keepdim=True).values) / temperature.to(logits.dtype)  # so nothing overflows
    tokens = torch.zeros(len(seqs), dtype=torch.long, device=device)
    short = torch.zeros(len(seqs), dtype=torch.bool, device=device)
    if plain := [i for i, s in enumerate(seqs) if not _truncates(s, vocabulary)]:
        where = on_device(plain, device)
        mass = scaled[where].double().exp().cumsum(-1)
        tokens[where] = _invert(mass, points[where], torch.full((len(plain),), vocabulary, device=device))
    by_count: dict[int, list[int]] = {}
    for i, s in enumerate(seqs):
        if _truncates(s, vocabulary):
            # A row's own number: how ties at the border are broken must not depend on its batch mates.
            by_count.setdefault(min(max(candidates, s.sampling.top_k), vocabulary), []).append(i)
    for count, rows in by_count.items():
        where = on_device(rows, device)
        tokens[where], short[where] = _draw_truncated(scaled[where], [seqs[i] for i in rows], points[where], count)
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
    return on_device([of(s) for s in seqs], device, torch.float64)[:, None]


def _uniform(seq: Sequence) -> float:
    """A number in [0, 1) for this seed and output position."""
    return float(np.random.Generator(np.random.Philox(key=seq.seed % 2**64, counter=seq.num_output)).random())


class _Logprobs:
    """Log-probabilities of the chosen tokens and of the likeliest; ``wanted`` says how many of these by row."""

    def __init__(self, logits: Tensor, chosen: Tensor, wanted: Mapping[int, int]) -> None:
        where = on_device(list(wanted), logits.device)
        self._wanted = wanted
        self._all = logits[where].float().log_softmax(-1)
        values, ids = self._all.topk(max(wanted.values()))
        own = self._all.gather(-1, chosen[where][:, None])
        # One copy: float64 holds every float32 and every id.
        self._told = Readback(torch.cat((chosen[where][:, None], own, values, ids), dim=-1).double())

    def read(self, tokens: Seq[int]) -> dict[int, TokenLogprob]:
        """Log-probabilities by row; ``tokens`` are those that were chosen at last."""
        found: dict[int, TokenLogprob] = {}
        for place, ((i, count), (chosen, own, *top)) in enumerate(
            zip(self._wanted.items(), self._told.wait().tolist(), strict=True)
        ):
            if tokens[i] != chosen:
                own = float(self._all[place, tokens[i]])
            half = len(top) // 2
            likeliest = tuple((int(id), value) for value, id in zip(top[:half], top[half:], strict=True))
            found[i] = TokenLogprob(tokens[i], own, likeliest[:count])
        return found
