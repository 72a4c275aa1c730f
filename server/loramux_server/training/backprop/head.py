"""Log-probabilities of given tokens from final hidden states, without holding all logits in memory at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from ..work import PAUSE, SETTLE, Interruptible
from .micro_batch_size import LOGITS_BYTES

CHUNK = 64
"""Rows of logits that exist at a time at least, [CHUNK, vocabulary] in float32: 13 MB for a vocabulary of 49,152."""


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Log-probabilities of n target tokens."""

    logprobs: Tensor  # [n], natural
    best: Tensor  # bool [n]: whether each target was the likeliest token
    gradients: Tensor | None
    """[n, hidden]: gradient of each log-probability with respect to its own row of hidden states."""


def token_logprobs(
    hidden: Tensor, targets: Tensor, head: Callable[[Tensor], Tensor], *, gradients: bool, rows: int | None = None
) -> Interruptible[TokenLogprobs]:
    """Log-probability of token ``targets[i]`` given row i of ``hidden`` [n, hidden]; pauses after every chunk of rows.

    ``head`` maps rows of hidden states to logits, each row on its own; ``rows`` of them exist at a time (None: CHUNK).
    Gradients are computed while a chunk's logits exist: nothing as wide as the vocabulary is kept, and no logits are
    computed twice.
    """
    logprobs, best, found = [], [], []
    count = CHUNK if rows is None else rows
    left = len(hidden)
    for part, target in zip(hidden.split(count), targets.split(count), strict=True):
        with torch.set_grad_enabled(gradients):
            leaf = part.detach().requires_grad_(gradients)
            logits = head(leaf)
        with torch.no_grad():
            best.append(logits.argmax(-1) == target)
            log_probs = log_softmax(logits, dim=-1)
            logprobs.append(log_probs.gather(1, target[:, None])[:, 0])
        if gradients:
            # d log p_t / d logits = onehot(t) - p, computed in place.
            grad = log_probs.exp_().neg_()
            grad[torch.arange(len(target), device=target.device), target] += 1
            found += torch.autograd.grad(logits, leaf, grad)
        del logits, log_probs
        left -= len(part)
        yield PAUSE if left else SETTLE
    return TokenLogprobs(torch.cat(logprobs), torch.cat(best), torch.cat(found) if gradients else None)


def chunk_rows(vocabulary: int, device: torch.device) -> int:
    """Rows of logits, each as wide as the vocabulary, that should exist at a time."""
    return max(CHUNK, LOGITS_BYTES[device.type] // (4 * vocabulary))
