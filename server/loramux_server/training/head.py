"""Log-probabilities of given tokens, from final hidden states, without all the logits in memory at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

CHUNK = 256
"""Rows of logits that exist at a time, [CHUNK, vocabulary] in float32: 50 MB for a vocabulary of 49,152."""


def token_logprobs(hidden: Tensor, targets: Tensor, head: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Log-probability (natural, [n], with gradient) of token ``targets[i]`` after row i of ``hidden`` [n, hidden].

    Also whether each was the likeliest, bool [n]. ``head`` gives logits of rows, each from its own row alone.
    """
    logprobs, best = _TokenLogprobs.apply(hidden, targets, head)
    return logprobs, best


class _TokenLogprobs(torch.autograd.Function):
    """Each output depends on its own row, so its slope there is all that a backward needs.

    The slopes, [n, hidden], are computed along with the chunk's logits. So nothing is kept that is as wide as the
    vocabulary, and nothing computed twice.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, targets: Tensor, head: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        wanted = ctx.needs_input_grad[0]
        logprobs, best, slopes = [], [], []
        for rows, target in zip(hidden.split(CHUNK), targets.split(CHUNK), strict=True):
            with torch.set_grad_enabled(wanted):
                leaf = rows.detach().requires_grad_(wanted)
                logits = head(leaf)
            best.append(logits.detach().argmax(-1) == target)
            chances = log_softmax(logits.detach(), dim=-1)
            logprobs.append(chances.gather(1, target[:, None])[:, 0])
            if wanted:
                # d log p_t / d logits = onehot(t) - p, in the memory that is there.
                slope = chances.exp_().neg_()
                slope[torch.arange(len(target), device=target.device), target] += 1
                slopes += torch.autograd.grad(logits, leaf, slope)
            del logits, chances
        if wanted:
            ctx.save_for_backward(torch.cat(slopes))
        found = torch.cat(best)
        ctx.mark_non_differentiable(found)
        return torch.cat(logprobs), found

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (slopes,) = ctx.saved_tensors
        return grads[0][:, None] * slopes, None, None
