"""Attention of decode rows over pages: microseconds by rows, context and how FlashAttention is asked."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.nn.attention.varlen import varlen_attn

from loramux_server.model.kv import KVPool, KVShape, PagedAttention, Span
from loramux_server.model.page_size import find_page_size

from .timing import seconds

HEADS, KV_HEADS, SIZE = 32, 8, 128
"""Of an 8B base."""
LOADS = ((1, 1024), (1, 16384), (16, 1024), (16, 8192), (64, 1024))
"""Rows, and tokens of each one's context."""
LONGEST = 131_072
"""Tokens of the longest context, which a graph for all of them plans for."""


def measure(device: torch.device, quick: bool) -> Iterator[dict[str, dict[str, float]]]:
    """Microseconds by "rows x context" and way, so far; on a processor the gathered attention alone."""
    dtype = torch.bfloat16
    page = find_page_size(HEADS, KV_HEADS, SIZE, device, dtype) if device.type == "cuda" else None
    shape = KVShape(1, KV_HEADS, SIZE, page or 16, kernel=page is not None)
    found: dict[str, dict[str, float]] = {}
    for rows, context in LOADS[:1] if quick else LOADS:
        count = -(-context // shape.page_size)
        pool = KVPool(shape, rows * count, device, dtype)
        q, k, v = (torch.randn(rows, n, SIZE, device=device, dtype=dtype) for n in (HEADS, KV_HEADS, KV_HEADS))
        spans = [Span(context - 1, 1, tuple(range(i * count, (i + 1) * count))) for i in range(rows)]
        given: dict[str, Any] = {"scale": SIZE**-0.5, "window": None, "softcap": None}
        attention = PagedAttention(pool, spans)
        attention.attend(0, q, k, v, **given)
        times = found[f"{rows} x {context}"] = {}
        with torch.inference_mode():
            keys, values = pool.keys[0], pool.values[0]
            times["as served"] = 1e6 * seconds(lambda: attention.read(q, keys, values, **given), device)  # noqa: B023
            if page is not None:
                times |= _ways(q, keys, values, attention, context, device)
        yield found


def _ways(
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    attention: PagedAttention,
    context: int,
    device: torch.device,
) -> dict[str, float]:
    """With a causal mask, which keeps grouped heads apart, and with splits planned for the longest context."""
    rows = len(q)
    starts = torch.arange(rows + 1, dtype=torch.int32, device=device)
    used = torch.full((rows,), context, dtype=torch.int32, device=device)

    def ask(longest: int, right: int) -> object:
        return varlen_attn(
            *(q, keys, values, starts, starts, 1, longest),
            scale=SIZE**-0.5,
            window_size=(-1, right),
            enable_gqa=True,
            seqused_k=used,
            block_table=attention.table,
        )

    return {
        "causal": 1e6 * seconds(lambda: ask(context, 0), device),
        "longest context": 1e6 * seconds(lambda: ask(LONGEST, -1), device),
        "causal, longest context": 1e6 * seconds(lambda: ask(LONGEST, 0), device),
    }
