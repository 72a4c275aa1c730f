"""What changes logits before a token is drawn: grammars, minimum length, bias and penalties, for many rows at once.

Each kind of change gathers its (row, token) pairs into one index, so that a step makes a few calls however many rows it
has, and none waits for the device.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from collections.abc import Sequence as Seq

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from ...lora.buffers import on_device
from ..scheduling.sequence import Sequence

LARGEST = 1e30
"""Of an adjusted logit: a tiny penalty makes an infinite one, and differences of those are no numbers."""


def adjusts(seq: Sequence) -> bool:
    """Whether the settings of a sequence change its logits before the temperature does."""
    s = seq.sampling
    return (
        s.repetition_penalty != 1.0
        or s.presence_penalty != 0.0
        or s.frequency_penalty != 0.0
        or bool(s.logit_bias)
        or seq.num_output < s.min_tokens
    )


def forbid(logits: Tensor, masks: Mapping[int, bytes]) -> None:
    """Take out of row i of ``logits`` [rows, vocabulary] every token whose bit is not set in ``masks[i]``, in place."""
    if not masks:
        return
    packed = np.stack([np.frombuffer(mask, dtype=np.uint8) for mask in masks.values()])
    bits = on_device(torch.from_numpy(packed), logits.device)  # a bit a token, the lowest first
    shifts = torch.arange(8, dtype=torch.uint8, device=logits.device)
    allowed = ((bits[:, :, None] >> shifts) & 1).flatten(1).bool()
    allowed = pad(allowed, (0, logits.shape[1] - allowed.shape[1]))  # some models pad the vocabulary
    where = on_device(list(masks), logits.device)
    logits[where] = logits[where].masked_fill(~allowed, -torch.inf)


def adjust(logits: Tensor, rows: Mapping[int, Sequence], eos: Collection[int]) -> None:
    """Apply minimum length, bias and penalties, in this order, to rows of ``logits`` [rows, vocabulary] in place."""
    if not rows:
        return
    _ban_ends(logits, {i: s for i, s in rows.items() if s.num_output < s.sampling.min_tokens}, eos)
    _add(logits, [(i, token, bias) for i, s in rows.items() for token, bias in s.sampling.logit_bias])
    penalties = [
        (i, token, p) for i, s in rows.items() if (p := s.sampling.repetition_penalty) != 1.0 for token in set(s.tokens)
    ]
    if penalties:
        where, penalty = _pairs(logits, penalties)
        values = logits[where]
        logits[where] = torch.where(values > 0, values / penalty, values * penalty)
    _add(logits, [(i, token, -amount) for i, s in rows.items() for token, amount in _penalties(s)])
    these = on_device(list(rows), logits.device)
    logits[these] = logits[these].clamp(max=LARGEST)


def _ban_ends(logits: Tensor, rows: Mapping[int, Sequence], eos: Collection[int]) -> None:
    """Take the tokens that end an answer out of rows, unless a grammar leaves nothing else."""
    banned = [
        (i, token, -torch.inf)
        for i, s in rows.items()
        for token in s.sampling.end_ids(eos, s.grammar is not None) | set(eos)
    ]
    if not banned:
        return
    where, infinite = _pairs(logits, banned)
    kept = logits[where]
    logits[where] = infinite
    nothing_left = logits.amax(dim=-1) == -torch.inf
    logits[where] = torch.where(nothing_left[where[0]], kept, infinite)


def _penalties(seq: Sequence) -> list[tuple[int, float]]:
    """What the presence and the frequency penalty take from the tokens of the output."""
    s = seq.sampling
    if not (s.presence_penalty or s.frequency_penalty):
        return []
    counts = Counter(seq.tokens[seq.prompt_length :])
    return [(token, s.presence_penalty + s.frequency_penalty * count) for token, count in counts.items()]


def _add(logits: Tensor, amounts: Seq[tuple[int, int, float]]) -> None:
    """Add (row, token, amount) to ``logits`` in place."""
    if amounts:
        where, values = _pairs(logits, amounts)
        logits.index_put_(where, values, accumulate=True)


def _pairs(logits: Tensor, amounts: Seq[tuple[int, int, float]]) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """(row, token, amount) as indices and values on the device of ``logits``."""
    rows, tokens, values = zip(*amounts, strict=True)
    device = logits.device
    return (on_device(rows, device), on_device(tokens, device)), on_device(values, device, logits.dtype)
