"""Which page size the variable-length attention kernel of this GPU can read in place, found out by trying.

Builds differ: FlashAttention 2 takes pages of a multiple of 256 tokens only where it takes any, FlashAttention 3 and
later kernels take small ones, and each says so only by raising. So every candidate is compared with plain attention
once at start; where none agrees, pages are gathered, which runs everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.attention import current_flash_attention_impl
from torch.nn.attention.varlen import varlen_attn

from .attention import causal_mask, dense_attention, padded_lengths

CANDIDATES = (16, 64, 128, 256)
"""Smaller pages waste less of the last one of each sequence."""
WINDOW = 24

Kernel = Callable[..., Tensor]


def paged_kernel(
    q: Tensor,  # [T, heads, head_dim]
    keys: Tensor,  # [pages, page_size, kv_heads, head_dim]
    values: Tensor,
    starts: Tensor,  # int32 [sequences + 1], cumulative query lengths
    used: Tensor,  # int32 [sequences], tokens of each sequence in the cache
    table: Tensor,  # int32 [sequences, most pages]
    longest_q: int,
    longest_k: int,
    *,
    scale: float,
    window: int | None,
) -> Tensor:  # [T, heads, head_dim]
    """Causal attention of packed queries, each the last tokens of its sequence, over pages read in place."""
    # The mask is aligned to the last key, so one query sees all keys, causal or not. Said to have no mask at all, the
    # kernel packs the query heads that share keys: these are then read once, not once for each head.
    unmasked = longest_q == 1 and window is None
    out = varlen_attn(
        q.contiguous(),
        keys,
        values,
        starts,
        # FlashAttention 2, torch's own, wants lengths of keys and then goes by `used`; its successors refuse any.
        starts if current_flash_attention_impl() is None else None,
        longest_q,
        longest_k,
        scale=scale,
        window_size=(-1, -1) if unmasked else (-1 if window is None else window - 1, 0),
        enable_gqa=q.shape[1] != keys.shape[2],
        seqused_k=used,
        block_table=table,
    )
    assert isinstance(out, Tensor)
    return out


def find_page_size(
    heads: int,
    kv_heads: int,
    head_dim: int,
    device: torch.device,
    dtype: torch.dtype,
    kernel: Kernel = paged_kernel,
    candidates: Sequence[int] = CANDIDATES,
) -> int | None:
    """The smallest page size at which ``kernel`` gives plain attention's values, or None when there is none."""
    if dtype == torch.float32:
        return None
    for page_size in candidates:
        try:
            if all(
                _agrees(kernel, spans(page_size), heads, kv_heads, page_size, head_dim, device, dtype, window)
                for spans in (_mixed, _decodes)
                for window in (None, WINDOW)
            ):
                return page_size
        except (RuntimeError, ValueError, NotImplementedError, TypeError):
            continue
    return None


Spans = list[tuple[int, int]]
"""Tokens before and tokens now of each sequence."""


def _mixed(page_size: int) -> Spans:
    """One decode row and one chunk in the middle of a sequence."""
    return [(page_size + 5, 1), (3, page_size + 9)]


def _decodes(page_size: int) -> Spans:
    """Decode rows alone, which kernels take another road for."""
    return [(page_size + 5, 1), (3, 1)]


def _agrees(
    kernel: Kernel,
    spans: Spans,
    heads: int,
    kv_heads: int,
    page_size: int,
    head_dim: int,
    device: torch.device,
    dtype: torch.dtype,
    window: int | None,
) -> bool:
    """Whether the kernel gives plain attention's values for two sequences, their pages out of order."""
    draw = torch.Generator().manual_seed(0)
    pool = torch.randn(2, 5, page_size, kv_heads, head_dim, generator=draw).to(device, dtype)
    q = torch.randn(sum(n for _, n in spans), heads, head_dim, generator=draw).to(device, dtype)
    table = torch.tensor([[3, 0], [4, 1]], dtype=torch.int32, device=device)
    used = torch.tensor([a + n for a, n in spans], dtype=torch.int32, device=device)
    starts = padded_lengths([n for _, n in spans], device)
    longest = max(n for _, n in spans), max(a + n for a, n in spans)
    got = kernel(q, pool[0], pool[1], starts, used, table, *longest, scale=head_dim**-0.5, window=window)
    row = 0
    for i, (before, now) in enumerate(spans):
        ks, vs = (x[table[i].long()].flatten(0, 1)[: before + now].transpose(0, 1)[None].float() for x in pool)
        mask = causal_mask(now, before, window, device)
        part = q[row : row + now].transpose(0, 1)[None].float()
        expected = dense_attention(part, ks, vs, scale=head_dim**-0.5, softcap=None, mask=mask)[0].transpose(0, 1)
        if not torch.allclose(got[row : row + now].float(), expected, atol=2e-2, rtol=2e-2):
            return False
        row += now
    return True
