"""The paged key/value cache, and attention of one serving step over it.

Method: PagedAttention (arXiv 2309.06180). Keys and values live in fixed pages that a sequence names by number;
which pages belong to whom is the scheduler's business (``engine/pages.py``), never this module's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..lora.host import zeros
from .attention import causal_mask, dense_attention, padded_lengths
from .paging import paged_kernel


@dataclass(frozen=True, slots=True)
class KVShape:
    """Shape of the cache of one model. All layers share it."""

    layers: int
    kv_heads: int
    head_dim: int
    page_size: int = 16
    kernel: bool = False
    """Whether pages of this size are read in place by a kernel (which knows no soft-capping), or gathered."""

    def page_bytes(self, dtype: torch.dtype) -> int:
        """Bytes of one page over all layers, keys and values."""
        return 2 * self.layers * self.page_size * self.kv_heads * self.head_dim * dtype.itemsize


class KVPool:
    """Keys and values of all layers: two tensors [layers, pages, page_size, kv_heads, head_dim].

    The last page is scratch that no sequence owns.
    """

    def __init__(self, shape: KVShape, pages: int, device: torch.device, dtype: torch.dtype) -> None:
        self.shape, self.pages = shape, pages
        size = (shape.layers, pages + 1, shape.page_size, shape.kv_heads, shape.head_dim)
        # Zeros, not empty: uninitialised memory may hold NaN, and 0 * NaN would reach the output through a mask.
        self.keys = zeros(size, device, dtype)
        self.values = zeros(size, device, dtype)

    @property
    def nbytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes


@dataclass(frozen=True, slots=True)
class Span:
    """The part of a sequence that a step computes: tokens [start, start + length) and the pages that hold it all."""

    start: int
    length: int
    pages: tuple[int, ...]

    @property
    def end(self) -> int:
        return self.start + self.length

    @property
    def positions(self) -> range:
        return range(self.start, self.end)


class PagedAttention:
    """Writes this step's keys and values to their pages, then attends. Spans of length 1 come first.

    Decode rows share one batched call over the padded longest context; each prefill chunk has its own, and chunks
    that start at 0 never read the cache back. On CUDA one variable-length kernel reads the pages in place.
    """

    def __init__(self, pool: KVPool, spans: Sequence[Span]) -> None:
        self._pool, self._spans = pool, tuple(spans)
        self._device, self._page = pool.keys.device, pool.shape.page_size
        self._decode = next((i for i, s in enumerate(spans) if s.length > 1), len(spans))
        if any(s.length == 1 for s in spans[self._decode :]):
            raise ValueError("spans of length 1 must come first")
        slots = [s.pages[i // self._page] * self._page + i % self._page for s in spans for i in s.positions]
        self._slots = torch.tensor(slots, device=self._device)
        self._masks: dict[tuple[int, int, int | None], Tensor] = {}

    def attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, scale: float, window: int | None, softcap: float | None
    ) -> Tensor:
        keys, values = self._pool.keys[layer], self._pool.values[layer]  # [pages, page_size, kv_heads, D]
        keys.flatten(0, 1).index_copy_(0, self._slots, k.to(keys.dtype))
        values.flatten(0, 1).index_copy_(0, self._slots, v.to(values.dtype))
        if self._pool.shape.kernel and softcap is None:
            return self._attend_kernel(q, keys, values, scale, window)
        if self._decode == q.shape[0]:
            return self._attend_decode(q, keys, values, scale, window, softcap)
        out = torch.empty_like(q)
        if self._decode:
            out[: self._decode] = self._attend_decode(q[: self._decode], keys, values, scale, window, softcap)
        row = self._decode
        for span, pages in zip(self._spans[self._decode :], self._prefill_pages, strict=True):
            rows = slice(row, row + span.length)
            if span.start == 0:
                ks, vs = k[rows], v[rows]
            else:
                ks, vs = (_gather(x, pages).flatten(0, 1)[: span.end] for x in (keys, values))
            mask = self._mask(span.length, span.start, window)
            out[rows] = dense_attention(
                *(x.transpose(0, 1).unsqueeze(0) for x in (q[rows], ks, vs)),
                scale=scale,
                softcap=softcap,
                mask=mask,
                causal=mask is None,
            )[0].transpose(0, 1)
            row += span.length
        return out

    @cached_property
    def _prefill_pages(self) -> list[Tensor]:
        return [
            torch.tensor(s.pages[: -(-s.end // self._page)], device=self._device) for s in self._spans[self._decode :]
        ]

    @cached_property
    def _decode_table(self) -> Tensor:
        return _page_table(self._spans[: self._decode], self._pool.pages, self._page).to(self._device)

    @cached_property
    def _context(self) -> Tensor:
        return torch.tensor([s.end for s in self._spans[: self._decode]], device=self._device)

    def _attend_decode(
        self, q: Tensor, keys: Tensor, values: Tensor, scale: float, window: int | None, softcap: float | None
    ) -> Tensor:
        # [B, kv_heads, L, D]
        ks, vs = (_gather(x, self._decode_table).flatten(1, 2).transpose(1, 2) for x in (keys, values))
        key = (-1, -1, window)
        if key not in self._masks:
            positions = torch.arange(ks.shape[2], device=self._device)
            mask = positions < self._context[:, None]
            if window is not None:
                mask &= self._context[:, None] - positions <= window
            self._masks[key] = mask[:, None, None, :]
        q4 = q.unsqueeze(2)  # [B, heads, 1, D]
        return dense_attention(q4, ks, vs, scale=scale, softcap=softcap, mask=self._masks[key]).squeeze(2)

    def _mask(self, length: int, start: int, window: int | None) -> Tensor | None:
        """None where plain causal attention from position 0 does."""
        if start == 0 and (window is None or window >= length):
            return None
        key = (length, start, window)
        if key not in self._masks:
            self._masks[key] = causal_mask(length, start, window, self._device)
        return self._masks[key]

    @cached_property
    def _kernel_arguments(self) -> tuple[Tensor, Tensor, Tensor, int, int]:
        """What :func:`.paging.paged_kernel` wants to know of the spans."""
        return (
            padded_lengths([s.length for s in self._spans], self._device),
            torch.tensor([s.end for s in self._spans], dtype=torch.int32, device=self._device),
            _page_table(self._spans, self._pool.pages, self._page).to(self._device),
            max(s.length for s in self._spans),
            max(s.end for s in self._spans),
        )

    def _attend_kernel(self, q: Tensor, keys: Tensor, values: Tensor, scale: float, window: int | None) -> Tensor:
        return paged_kernel(q, keys, values, *self._kernel_arguments, scale=scale, window=window)


def _gather(pages: Tensor, index: Tensor) -> Tensor:
    """``pages[index]`` page by page: whole rows are copied, which indexing does element by element on the host."""
    rows = pages.flatten(1).index_select(0, index.flatten())
    return rows.view(*index.shape, *pages.shape[1:])


def _page_table(spans: Sequence[Span], scratch: int, page: int) -> Tensor:
    """int32 [spans, most pages]; short rows are filled with the scratch page."""
    used = [-(-s.end // page) for s in spans]
    table = torch.full((len(spans), max(used)), scratch, dtype=torch.int32)
    for row, (span, count) in enumerate(zip(spans, used, strict=True)):
        table[row, :count] = torch.tensor(span.pages[:count], dtype=torch.int32)
    return table
