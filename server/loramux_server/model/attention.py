"""Attention over packed tokens, plugged into transformers through ``AttentionInterface``.

A model calls :func:`_forward` in every layer; the step's ``lora.context.Attention`` does the work. There are two:
:class:`PackedAttention` (whole sequences, no cache, differentiable: training) and ``kv.PagedAttention`` (serving).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel

from ..core.errors import Code, Error
from ..lora.buffers import on_device
from ..lora.context import StepContext

FLASH_CAPABILITY = (8, 0)
"""Compute capability of the first GPUs that FlashAttention runs on."""
NAME = "loramux"
"""The attention implementation under which models are loaded."""
_HARMLESS = frozenset({"position_ids", "cache_position"})
"""Tensors that models hand through to attention though it has no use for them. Others, such as sinks, change it."""


def attach(model: PreTrainedModel, context: StepContext) -> None:
    """Let every attention module of ``model`` (loaded with ``attn_implementation=NAME``) find ``context``."""
    for module in model.modules():
        if hasattr(module, "layer_idx"):
            object.__setattr__(module, "loramux_context", context)


def _forward(
    module: nn.Module,
    query: Tensor,  # [1, heads, T, head_dim]
    key: Tensor,  # [1, kv_heads, T, head_dim]
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    if unknown := [name for name, value in others.items() if isinstance(value, Tensor) and name not in _HARMLESS]:
        raise Error(
            Code.FAILED_PRECONDITION,
            f"the attention of {module.__class__.__name__} is not supported: it brings {', '.join(unknown)}, which "
            "would be left out; use another base",
            reason="MODEL_NOT_SUPPORTED",
        )
    context: StepContext = module.loramux_context  # type: ignore[assignment]
    attention = context.attention
    if attention is None:
        raise RuntimeError("no attention set for this step")
    out = attention.attend(
        int(module.layer_idx),  # type: ignore[arg-type]
        query[0].transpose(0, 1),
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        scale=query.shape[-1] ** -0.5 if scaling is None else scaling,
        window=sliding_window,
        softcap=softcap,
    )
    return out.unsqueeze(0), None


AttentionInterface.register(NAME, _forward)


def dense_attention(
    q: Tensor,  # [B, heads, Q, D]
    k: Tensor,  # [B, kv_heads, K, D]
    v: Tensor,
    *,
    scale: float,
    softcap: float | None,
    mask: Tensor | None,  # bool, broadcastable to [B, heads, Q, K]: True attends
    causal: bool = False,
) -> Tensor:  # [B, heads, Q, D]
    """Scaled dot-product attention with grouped heads and, where a model asks for it, soft-capped scores."""
    grouped = q.shape[1] != k.shape[1]
    if grouped and (softcap is not None or not takes_groups(q.device, q.dtype, mask is not None)):
        k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
        v = v.repeat_interleave(q.shape[1] // v.shape[1], dim=1)
        grouped = False
    if softcap is None:
        return scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, scale=scale, enable_gqa=grouped)
    scores = torch.tanh(q @ k.transpose(-1, -2) * (scale / softcap)) * softcap
    if causal:
        mask = causal_mask(q.shape[2], 0, None, q.device)
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return scores.softmax(-1, dtype=torch.float32).to(v.dtype) @ v


@cache
def takes_groups(device: torch.device, dtype: torch.dtype, masked: bool) -> bool:
    """Whether torch has a kernel for grouped heads that keeps no matrix of scores.

    On CUDA that is FlashAttention alone, which takes neither float32 nor masks, and no GPU before Ampere. Elsewhere
    grouped heads fall to plain products, so keys and values are expanded for the memory-efficient kernel.
    """
    if device.type != "cuda":
        return True
    return dtype != torch.float32 and not masked and torch.cuda.get_device_capability(device) >= FLASH_CAPABILITY


def causal_mask(length: int, offset: int, window: int | None, device: torch.device) -> Tensor:
    """Which of ``offset + length`` keys each of the last ``length`` positions sees: bool [length, offset + length]."""
    queries = torch.arange(offset, offset + length, device=device)[:, None]
    keys = torch.arange(offset + length, device=device)[None, :]
    mask = keys <= queries
    if window is not None:
        mask = mask & (queries - keys < window)
    return mask


class PackedAttention:
    """Causal attention inside each of several whole sequences laid end to end; differentiable.

    Sequences are padded to the longest for one batched call: on the right, so the causal mask alone keeps padding
    out of every real query. Padding repeats the sequence's own first token: masked or not, a value that is no number
    times zero is none, and must not come from another sequence.
    """

    def __init__(self, lengths: Sequence[int], device: torch.device) -> None:
        self._longest = max(lengths)
        self._count = len(lengths)
        index = torch.zeros(self._count, self._longest, dtype=torch.long)
        flat: list[Tensor] = []
        start = 0
        for row, length in enumerate(lengths):
            index[row] = start
            index[row, :length] += torch.arange(length)
            flat.append(torch.arange(row * self._longest, row * self._longest + length))
            start += length
        self._padded = on_device(index.flatten(), device)  # token of each padded cell
        self._tokens = on_device(torch.cat(flat), device)  # padded cell of each token
        self._whole = all(length == self._longest for length in lengths)
        self._masks: dict[int, Tensor] = {}

    def attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, scale: float, window: int | None, softcap: float | None
    ) -> Tensor:
        mask = None
        if window is not None and window < self._longest:
            if window not in self._masks:
                self._masks[window] = causal_mask(self._longest, 0, window, q.device)
            mask = self._masks[window]
        out = dense_attention(
            self._pad(q), self._pad(k), self._pad(v), scale=scale, softcap=softcap, mask=mask, causal=mask is None
        )
        out = out.transpose(1, 2).reshape(self._count * self._longest, *out.shape[1::2])
        return out if self._whole else out.index_select(0, self._tokens)

    def _pad(self, x: Tensor) -> Tensor:
        """[T, heads, D] -> [sequences, heads, longest, D]."""
        if not self._whole:
            x = x.index_select(0, self._padded)
        return x.view(self._count, self._longest, *x.shape[1:]).transpose(1, 2)


def padded_lengths(lengths: Sequence[int], device: torch.device) -> Tensor:
    """Cumulative lengths, int32 [n + 1], as variable-length kernels want them."""
    return pad(on_device(lengths, device, torch.int32).cumsum(0, dtype=torch.int32), (1, 0))
