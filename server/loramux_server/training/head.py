"""Log-probabilities of given tokens, from final hidden states, without all the logits in memory at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from .layers import Units

CHUNK = 64
"""Rows of logits that exist at a time, [CHUNK, vocabulary] in float32: 13 MB for a vocabulary of 49,152."""


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """How likely the model finds tokens."""

    logprobs: Tensor  # [n], natural
    best: Tensor  # bool [n]: whether each was the likeliest
    slopes: Tensor | None
    """[n, hidden]: the gradient of each log-probability, which depends on its own row of hidden states only."""


def token_logprobs(
    hidden: Tensor, targets: Tensor, head: Callable[[Tensor], Tensor], *, slopes: bool
) -> Units[TokenLogprobs]:
    """Log-probability of token ``targets[i]`` after row i of ``hidden`` [n, hidden]; pauses after each chunk of rows.

    ``head`` gives logits of rows, each from its own row alone. The slopes are computed along with a chunk's logits, so
    nothing is kept that is as wide as the vocabulary, and nothing computed twice.
    """
    logprobs, best, found = [], [], []
    for rows, target in zip(hidden.split(CHUNK), targets.split(CHUNK), strict=True):
        with torch.set_grad_enabled(slopes):
            leaf = rows.detach().requires_grad_(slopes)
            logits = head(leaf)
        with torch.no_grad():
            best.append(logits.argmax(-1) == target)
            chances = log_softmax(logits, dim=-1)
            logprobs.append(chances.gather(1, target[:, None])[:, 0])
        if slopes:
            # d log p_t / d logits = onehot(t) - p, in the memory that is there.
            slope = chances.exp_().neg_()
            slope[torch.arange(len(target), device=target.device), target] += 1
            found += torch.autograd.grad(logits, leaf, slope)
        del logits, chances
        yield
    return TokenLogprobs(torch.cat(logprobs), torch.cat(best), torch.cat(found) if slopes else None)
