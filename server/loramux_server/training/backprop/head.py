"""How well final hidden states predict: given tokens, or a teacher's distributions over the whole vocabulary.

Nothing here holds all logits in memory at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from ...lora.buffers import on_device
from ..work import PAUSE, SETTLE, Interruptible
from .micro_batch_size import LOGITS_BYTES

CHUNK = 64
"""Rows of logits that exist at a time at least, [CHUNK, vocabulary] in float32: 13 MB for a vocabulary of 49,152."""


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Log-probabilities of n target tokens, or negated divergences from n distributions of a teacher.

    Either is at most 0, and training makes it larger.
    """

    logprobs: Tensor  # [n], natural
    best: Tensor  # bool [n]: whether the likeliest token was the target, or the teacher's likeliest one
    gradients: Tensor | None
    """[n, hidden]: gradient of each of ``logprobs`` with respect to its own row of hidden states."""


def token_logprobs(
    hidden: Tensor,
    targets: Tensor,
    head: Callable[[Tensor], Tensor],
    *,
    gradients: bool,
    rows: int | None = None,
    teacher: bool = False,
) -> Interruptible[TokenLogprobs]:
    """How well row i of ``hidden`` [n, hidden] predicts ``targets[i]``; pauses after every chunk of rows.

    ``targets`` are token ids [n]. Of a ``teacher`` they are its own final hidden states [n, hidden]: the distribution
    q that they give is the target of the model's p, and -KL(q || p) over the whole vocabulary takes the place of the
    log-probability. ``head`` maps rows of hidden states to logits, each row on its own; ``rows`` of them exist at a
    time (None: CHUNK). Gradients are computed while a chunk's logits exist: nothing as wide as the vocabulary is kept,
    and no logits of the model are computed twice.
    """
    logprobs, best, found = [], [], []
    count = CHUNK if rows is None else rows
    left = len(hidden)
    for part, target in zip(hidden.split(count), targets.split(count), strict=True):
        with torch.set_grad_enabled(gradients):
            leaf = part.detach().requires_grad_(gradients)
            logits = head(leaf)
        with torch.no_grad():
            # A divergence is a small sum over the whole vocabulary: 16 bits would be too few.
            dtype = torch.promote_types(logits.dtype, torch.float32) if teacher else logits.dtype
            log_probs = log_softmax(logits, dim=-1, dtype=dtype)
            if teacher:
                wanted = log_softmax(head(_beside(target, part)), dim=-1, dtype=dtype)
                best.append(logits.argmax(-1) == wanted.argmax(-1))
                probs = wanted.exp()
                logprobs.append((probs * (log_probs - wanted)).sum(-1))
                del wanted
            else:
                best.append(logits.argmax(-1) == target)
                logprobs.append(log_probs.gather(1, target[:, None])[:, 0])
        if gradients:
            # The gradient of either with respect to the logits is target - p, the target of a token being its onehot.
            grad = log_probs.exp_().neg_()
            if teacher:
                grad += probs
            else:
                grad[torch.arange(len(target), device=target.device), target] += 1
            found += torch.autograd.grad(logits, leaf, grad.to(logits.dtype))
        del logits, log_probs
        left -= len(part)
        yield PAUSE if left else SETTLE
    return TokenLogprobs(torch.cat(logprobs), torch.cat(best), torch.cat(found) if gradients else None)


def _beside(values: Tensor, other: Tensor) -> Tensor:
    """``values`` on the device of another tensor, which nothing waits for."""
    return values if values.device == other.device else on_device(values, other.device)


def chunk_rows(vocabulary: int, device: torch.device) -> int:
    """Rows of logits, each as wide as the vocabulary, that should exist at a time."""
    return max(CHUNK, LOGITS_BYTES[device.type] // (4 * vocabulary))
