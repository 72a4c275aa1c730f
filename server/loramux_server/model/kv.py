"""The paged key/value cache, and attention of one serving step over it.

Method: PagedAttention (arXiv 2309.06180). Keys and values live in fixed pages that a sequence names by number;
which pages belong to whom is the scheduler's business (``engine/scheduling/pages.py``), never this module's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor

from ..lora.buffers import on_device, upload, zeros
from .attention import PackedAttention, causal_mask, dense_attention, padded_lengths
from .page_size import paged_kernel

PADDED = 2
"""Prompts of a step share a call if padding makes them at most so many times as long."""


@dataclass(frozen=True, slots=True)
class KVShape:
    """Shape of the cache of one model. All layers share it."""

    layers: int
    kv_heads: int
    head_dim: int
    page_size: int = 16
    kernel: bool = False
    """Whether pages of this size are read in place by a kernel, or gathered."""

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

    def write(self, layer: int, slots: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store k and v [T, kv_heads, D] in ``slots`` [T] (page times page size plus place); give the layer's pages."""
        keys, values = self.keys[layer], self.values[layer]  # [pages, page_size, kv_heads, D]
        keys.flatten(0, 1).index_copy_(0, slots, k.to(keys.dtype))
        values.flatten(0, 1).index_copy_(0, slots, v.to(values.dtype))
        return keys, values

    def copy(self, source: int, target: int, tokens: int) -> None:
        """Let a page begin with the first ``tokens`` positions of another, and have zeros behind them."""
        for pages in (self.keys, self.values):
            pages[:, target, :tokens] = pages[:, source, :tokens]
            pages[:, target, tokens:].zero_()


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

    Decode rows share one batched call over the padded longest context. Prompts that start in this step share one, and
    never read the cache back; where one goes on, or their lengths are too unlike, each chunk has its own. On CUDA one
    variable-length kernel reads the pages in place.
    """

    def __init__(self, pool: KVPool, spans: Sequence[Span]) -> None:
        self.pool, self._spans = pool, tuple(spans)
        self._device, self._page = pool.keys.device, pool.shape.page_size
        self._decode = next((i for i, s in enumerate(spans) if s.length > 1), len(spans))
        if any(s.length == 1 for s in spans[self._decode :]):
            raise ValueError("spans of length 1 must come first")
        self.slots = on_device(_slots(spans, self._page), self._device)
        """Where each token's key and value go: page times page size plus place, [T]."""
        self._masks: dict[tuple[int, int, int | None], Tensor] = {}

    def attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, scale: float, window: int | None, softcap: float | None
    ) -> Tensor:
        keys, values = self.pool.write(layer, self.slots, k, v)
        if self.reads_back:
            return self.read(q, keys, values, scale=scale, window=window, softcap=softcap)
        out = torch.empty_like(q)
        if self._decode:
            out[: self._decode] = self._attend_decode(q[: self._decode], keys, values, scale, window, softcap)
        if self._fresh is not None:
            rest = slice(self._decode, None)
            out[rest] = self._fresh.attend(
                layer, q[rest], k[rest], v[rest], scale=scale, window=window, softcap=softcap
            )
            return out
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

    @property
    def reads_back(self) -> bool:
        """Whether all keys and values of a layer are read from its pages, those of this step too."""
        return self.pool.shape.kernel or self.only_decodes

    def read(
        self, q: Tensor, keys: Tensor, values: Tensor, *, scale: float, window: int | None, softcap: float | None
    ) -> Tensor:
        """Attend over a layer's pages, in which this step's keys and values lie; see :attr:`reads_back`."""
        if self.pool.shape.kernel:
            return paged_kernel(q, keys, values, *self._kernel_arguments, scale=scale, window=window)
        return self._attend_decode(q, keys, values, scale, window, softcap)

    @cached_property
    def _fresh(self) -> PackedAttention | None:
        """One call for all prompts of the step, if they start here and padding them to the longest costs little."""
        lengths = [s.length for s in self._spans[self._decode :]]
        if any(s.start for s in self._spans[self._decode :]) or len(lengths) * max(lengths) > PADDED * sum(lengths):
            return None
        return PackedAttention(lengths, self._device)

    @cached_property
    def _prefill_pages(self) -> list[Tensor]:
        return [on_device(s.pages[: -(-s.end // self._page)], self._device) for s in self._spans[self._decode :]]

    @property
    def only_decodes(self) -> bool:
        """Whether every span has length 1."""
        return self._decode == len(self._spans)

    @cached_property
    def table(self) -> Tensor:
        """Pages of the spans of length 1, int32 [spans, most pages]."""
        return on_device(_page_table(self._spans[: self._decode], self.pool.pages, self._page), self._device)

    @cached_property
    def context(self) -> Tensor:
        """Positions that each span of length 1 attends to, itself included, [spans]."""
        return on_device([s.end for s in self._spans[: self._decode]], self._device)

    def _attend_decode(
        self, q: Tensor, keys: Tensor, values: Tensor, scale: float, window: int | None, softcap: float | None
    ) -> Tensor:
        # [B, kv_heads, L, D]
        ks, vs = (_gather(x, self.table).flatten(1, 2).transpose(1, 2) for x in (keys, values))
        key = (-1, -1, window)
        if key not in self._masks:
            positions = torch.arange(ks.shape[2], device=self._device)
            mask = positions < self.context[:, None]
            if window is not None:
                mask &= self.context[:, None] - positions <= window
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
            on_device([s.end for s in self._spans], self._device, torch.int32),
            on_device(_page_table(self._spans, self.pool.pages, self._page), self._device),
            max(s.length for s in self._spans),
            max(s.end for s in self._spans),
        )


class StaticAttention:
    """Attention of a step in buffers whose shapes and addresses never change, through the paging kernel.

    What a captured graph replays. Tokens beyond those that :meth:`fill` is given write to the scratch page. Where they
    belong to no span their results are whatever was in memory, and nobody's. Lengths that the kernel wants as plain
    numbers are the most that there may be.
    """

    def __init__(self, pool: KVPool, tokens: int, spans: int, width: int) -> None:
        """For ``spans`` spans of at most ``width`` pages each, and of length 1 where there are as many ``tokens``."""
        self.pool, self._width, device = pool, width, pool.keys.device
        self._longest = 1 if tokens == spans else tokens
        self.slots = torch.full((tokens,), pool.pages * pool.shape.page_size, device=device)
        self._used = torch.ones(spans, dtype=torch.int32, device=device)
        self._table = torch.full((spans, width), pool.pages, dtype=torch.int32, device=device)
        self._starts = torch.arange(spans + 1, dtype=torch.int32, device=device) * int(tokens == spans)

    def fill(self, spans: Sequence[Span]) -> None:
        """Attend to these spans from now on. Others of length 1 read their own key alone, longer ones are empty."""
        page, left = self.pool.shape.page_size, len(self._used) - len(spans)
        slots = _slots(spans, page)
        slots += [self.pool.pages * page] * (len(self.slots) - len(slots))
        used = [s.end for s in spans] + [1] * left
        upload(self.slots, torch.tensor(slots))
        upload(self._used, torch.tensor(used, dtype=torch.int32))
        if self._longest > 1:
            starts = [0, *accumulate(s.length for s in spans)]
            upload(self._starts, torch.tensor(starts + starts[-1:] * left, dtype=torch.int32))
        upload(self._table, _page_table(spans, self.pool.pages, page, (len(self._used), self._width)))

    def attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, scale: float, window: int | None, softcap: float | None
    ) -> Tensor:
        keys, values = self.pool.write(layer, self.slots, k, v)
        return self.read(q, keys, values, scale=scale, window=window, softcap=softcap)

    @property
    def reads_back(self) -> bool:
        """As :attr:`PagedAttention.reads_back`."""
        return True

    def read(
        self, q: Tensor, keys: Tensor, values: Tensor, *, scale: float, window: int | None, softcap: float | None
    ) -> Tensor:
        """As :meth:`PagedAttention.read`."""
        longest = self._longest, self._width * self.pool.shape.page_size
        return paged_kernel(
            q, keys, values, self._starts, self._used, self._table, *longest, scale=scale, window=window
        )


def _slots(spans: Sequence[Span], page: int) -> list[int]:
    """Where each token of ``spans`` lies in the pool."""
    return [s.pages[i // page] * page + i % page for s in spans for i in s.positions]


def _gather(pages: Tensor, index: Tensor) -> Tensor:
    """``pages[index]`` page by page: whole rows are copied, which indexing does element by element on the host."""
    rows = pages.flatten(1).index_select(0, index.flatten())
    return rows.view(*index.shape, *pages.shape[1:])


def _page_table(spans: Sequence[Span], scratch: int, page: int, shape: tuple[int, int] | None = None) -> Tensor:
    """int32 [spans, most pages], or of a larger ``shape``; short rows are filled with the scratch page."""
    used = [-(-s.end // page) for s in spans]
    table = torch.full(shape or (len(spans), max(used)), scratch, dtype=torch.int32)
    for row, (span, count) in enumerate(zip(spans, used, strict=True)):
        table[row, :count] = torch.tensor(span.pages[:count], dtype=torch.int32)
    return table
