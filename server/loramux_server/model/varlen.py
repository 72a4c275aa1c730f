"""Attention over whole packed sequences by torch's variable-length kernel: with gradients, and nothing is padded.

The kernel is FlashAttention, so only a GPU has it, for 16-bit types and most sizes of heads. Whether it takes those of
a model is found out by trying, as with pages: forward and backward are compared with plain attention once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from .attention import causal_mask, dense_attention, padded_lengths

LENGTHS = (37, 1, 64)
"""Sequences of the trial."""
WINDOW = 24

Kernel = Callable[..., Tensor]


def varlen_kernel(
    q: Tensor,  # [T, heads, head_dim]
    k: Tensor,  # [T, kv_heads, head_dim]
    v: Tensor,
    starts: Tensor,  # int32 [sequences + 1], cumulative lengths
    longest: int,
    *,
    scale: float,
    window: int | None,
) -> Tensor:  # [T, heads, head_dim]
    """Causal attention inside each sequence."""
    out = varlen_attn(
        q.contiguous(),
        k.contiguous(),
        v.contiguous(),
        starts,
        starts,
        longest,
        longest,
        scale=scale,
        window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=q.shape[1] != k.shape[1],
    )
    assert isinstance(out, Tensor)
    return out


class VarlenAttention:
    """Causal attention inside each of several whole sequences laid end to end; the kernel knows their ends."""

    def __init__(self, lengths: Sequence[int], device: torch.device, kernel: Kernel) -> None:
        self._starts, self._longest, self._kernel = padded_lengths(lengths, device), max(lengths), kernel

    def attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, scale: float, window: int | None, softcap: float | None
    ) -> Tensor:
        if softcap is not None:
            raise ValueError("no variable-length kernel caps scores")
        if window is not None and window >= self._longest:
            window = None
        return self._kernel(q, k, v, self._starts, self._longest, scale=scale, window=window)


def find_kernel(
    heads: int,
    kv_heads: int,
    head_dim: int,
    device: torch.device,
    dtype: torch.dtype,
    kernel: Kernel = varlen_kernel,
) -> Kernel | None:
    """``kernel``, if it gives plain attention's values and gradients for heads of this shape, else None."""
    try:
        agrees = all(_agrees(kernel, heads, kv_heads, head_dim, device, dtype, window) for window in (None, WINDOW))
    except (RuntimeError, ValueError, NotImplementedError, TypeError):
        return None
    return kernel if agrees else None


def _agrees(
    kernel: Kernel,
    heads: int,
    kv_heads: int,
    head_dim: int,
    device: torch.device,
    dtype: torch.dtype,
    window: int | None,
) -> bool:
    draw = torch.Generator().manual_seed(0)

    def random(count: int) -> Tensor:
        return torch.randn(sum(LENGTHS), count, head_dim, generator=draw).to(device, dtype)

    given, pull = [random(heads), random(kv_heads), random(kv_heads)], random(heads)
    scale = head_dim**-0.5

    def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        parts = []
        for length, *one in zip(LENGTHS, *(x.split(LENGTHS) for x in (q, k, v)), strict=True):
            mask = causal_mask(length, 0, window, device)
            batch = [x.transpose(0, 1)[None] for x in one]
            parts.append(dense_attention(*batch, scale=scale, softcap=None, mask=mask)[0].transpose(0, 1))
        return torch.cat(parts)

    def tried(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return VarlenAttention(LENGTHS, device, kernel).attend(0, q, k, v, scale=scale, window=window, softcap=None)

    with torch.enable_grad():
        got = _with_gradients(tried, given, pull)
        expected = _with_gradients(plain, [x.float() for x in given], pull.float())
    return all(torch.allclose(a.float(), b, atol=4e-2, rtol=4e-2) for a, b in zip(got, expected, strict=True))


def _with_gradients(attend: Callable[..., Tensor], given: Sequence[Tensor], pull: Tensor) -> list[Tensor]:
    """Output and gradients of all inputs."""
    leaves = [x.detach().requires_grad_() for x in given]
    out = attend(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, pull)]
