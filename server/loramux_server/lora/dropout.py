"""Dropout as a function of numbers: the seed of a row, the place of a token in it, the group and the column.

So a forward that is computed again, a batch that is split otherwise and a resumed job drop the same values, on any
device. All rows of a micro-batch are drawn in a few operations: random streams of their own would cost a launch for
each row and group. The numbers are those of SplitMix64 (Steele, Lea and Flood 2014).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

GAMMA, FIRST, SECOND = (value - (1 << 64) for value in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
"""Odd constants of SplitMix64, as signed 64-bit numbers."""
LANES = 4
"""16-bit draws in one random number: a probability is met to 1 / 65,536."""


def token_keys(sequences: Sequence[tuple[int, int]], device: torch.device) -> Tensor:
    """A number for each token of sequences, given as (length, seed): int64 [tokens]."""
    lengths, seeds = torch.tensor(sequences, dtype=torch.int64).view(-1, 2).unbind(1)
    positions = torch.cat([torch.arange(n) for n, _ in sequences]) if sequences else torch.empty(0, dtype=torch.int64)
    return _mix(seeds.repeat_interleave(lengths) + positions * GAMMA).to(device)


def factors(keys: Tensor, stream: int, width: int, dropout: float) -> Tensor:
    """Dropout factors [tokens, width] in float32: 0 for dropped values, else 1 / (1 - dropout).

    ``keys`` are of :func:`token_keys`; other values of ``stream`` give other factors for the same tokens.
    """
    lanes = torch.arange(-(-width // LANES), device=keys.device) * GAMMA
    of_stream = torch.full((), stream, dtype=torch.int64, device=keys.device) * SECOND
    draws = _mix(_mix(keys + of_stream)[:, None] + lanes).view(torch.int16)[:, :width]
    least = min(round(dropout * (1 << 16)), (1 << 16) - 1) - (1 << 15)
    return (draws >= least).float().div_(1 - dropout)


def _mix(x: Tensor) -> Tensor:
    """Random numbers from the values of a temporary tensor, in its place."""
    x.bitwise_xor_(_shifted(x, 30)).mul_(FIRST)
    x.bitwise_xor_(_shifted(x, 27)).mul_(SECOND)
    return x.bitwise_xor_(_shifted(x, 31))


def _shifted(x: Tensor, bits: int) -> Tensor:
    """Values shifted right without their sign: a sign that is shifted in would cancel the highest bit."""
    return (x >> bits).bitwise_and_((1 << 64 - bits) - 1)
