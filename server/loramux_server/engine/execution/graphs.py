"""Decode steps replayed as graphs: one launch in place of hundreds of small ones.

A graph has fixed shapes and addresses, so a step is padded to the next *bucket* of rows. Its inputs are copied into the
graph's buffers. Rows that are padding write to the scratch page and are dropped. Where the kernels by index run, each
bucket has a graph with adapters and one without, captured at the start: they read from the device which rank rows of
the bank act. Elsewhere the adapters' weights are gathered inside the graph, buckets are of rank rows too, and those
with adapters are captured when first needed. Steps with prompts, and whatever fits no graph, run as they are.
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...lora.bank import AdapterBank
from ...lora.blocks import IndexedBlock, RowSegment, StaticBlock, used_ranks
from ...lora.buffers import upload
from ...lora.routing import Routing
from ...model.base.context_length import max_context
from ...model.kv import DecodeAttention, KVPool, Span
from ...model.out_of_memory import out_of_memory
from ...model.resident import ResidentBase
from .capture import Capture, CaptureBroken

log = logging.getLogger(__name__)

ROWS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)
"""Sequences of a step. At more, the products take longer than launching them."""
RANKS = (0, 16, 32, 64, 128, 256, 512)
"""Rank rows that a step's adapters use together, where they are gathered; 0 is the base alone."""
MOST = 48
"""Graphs kept. Further buckets are served by a larger one that there is."""
NODE_BYTES = 256 << 10
"""Assumed memory of one graph's nodes, per layer of the model."""
PATIENCE = 256
"""Steps that need a bucket before it is tried again, after its capture ran out of memory for the first time."""
TRIES = 4

Bucket = tuple[int, int]
"""Rows and rank rows of a graph."""


def graph_bytes(base: ResidentBase, max_rows: int) -> int:
    """Memory to leave for graphs: an estimate that is meant to be high.

    The nodes of as many graphs as may be kept; the logits of the largest bucket in both types that they pass through
    and in the buffer that they are read from; the largest weight, which some products dequantise whole.
    """
    logits = _upto(ROWS, max_rows)[-1] * _vocabulary(base) * (4 + 4 + base.dtype.itemsize)
    weight = max(n * k for n, k in base.modules.values()) * base.dtype.itemsize
    return MOST * len(base.layers) * NODE_BYTES + logits + weight


class DecodeGraphs:
    """The graphs of one engine. It belongs to the thread that owns the model.

    A bucket that cannot be captured is given up, and its steps run in a larger one or eagerly. Where only memory was
    missing, it is tried again after ``PATIENCE`` of its steps, and then after twice as many, ``TRIES`` times in all.
    The first failure is logged; ``failures`` counts them.
    """

    def __init__(self, base: ResidentBase, kv: KVPool, bank: AdapterBank, max_rows: int, capture: Capture) -> None:
        """For steps of up to ``max_rows`` sequences."""
        self._base, self._kv, self._bank, self._capture = base, kv, bank, capture
        self._rows = _upto(ROWS, max_rows)
        self._ranks = sorted({0, bank.rows}) if bank.by_index else _upto(RANKS, bank.rows)
        self._indexed = IndexedBlock.for_decoding(bank, self._rows[-1]) if bank.by_index else None
        self._width = min(-(-max_context(base.model) // kv.shape.page_size), kv.pages)
        # All graphs write their logits here: outputs of their own would be kept for each.
        self._logits = torch.zeros(self._rows[-1], _vocabulary(base), device=base.device)
        self._graphs: dict[Bucket, _Graph] = {}
        self._failed: dict[Bucket, _Failed] = {}
        self._broken = False  # nothing may be captured any more
        self.failures = 0
        """Captures that failed."""

    @property
    def count(self) -> int:
        """Graphs captured and kept."""
        return len(self._graphs)

    @property
    def nbytes(self) -> int:
        return self._logits.nbytes + self._capture.nbytes

    @torch.inference_mode()
    def prepare(self) -> None:
        """Capture the base's own graphs, and those with adapters where these are few.

        Largest first: the smaller ones then find room in the memory of that one.
        """
        for rows in reversed(self._rows):
            for ranks in (0,) if self._indexed is None else self._ranks:
                if not self._broken:
                    self._add((rows, ranks))

    def run(
        self,
        ids: Sequence[int],
        wanted: Sequence[int],
        spans: Sequence[Span],
        segments: tuple[RowSegment, ...],
        fill: Callable[[Tensor], None] = lambda ids: None,
    ) -> Tensor | None:
        """Logits [len(wanted), vocabulary] of a step with one token for each sequence, or None to compute it eagerly.

        Runs in inference mode. ``wanted`` are rows whose logits are asked for, each at most once. ``fill`` puts tokens
        that only the device knows among the ids there.
        """
        if any(len(s.pages) > self._width for s in spans):
            return None
        graph = self._find(len(ids), used_ranks(segments))
        return None if graph is None else graph.run(ids, wanted, spans, segments, fill)

    def _find(self, rows: int, ranks: int) -> _Graph | None:
        """The smallest graph that takes so much; a new one if there may be more."""
        if rows > self._rows[-1] or ranks > self._ranks[-1]:
            return None
        key = self._rows[bisect_left(self._rows, rows)], self._ranks[bisect_left(self._ranks, ranks)]
        if key not in self._graphs and len(self._graphs) < MOST and self._may_capture(key):
            self._add(key)
        fitting = [k for k in self._graphs if k[0] >= rows and k[1] >= ranks]
        return self._graphs[min(fitting)] if fitting else None

    def _may_capture(self, key: Bucket) -> bool:
        """Whether a bucket that a step needs may be captured now. Each call counts as one such step."""
        failed = self._failed.get(key)
        if failed is None or self._broken:
            return not self._broken
        failed.wait -= 1
        return failed.wait == 0

    def _add(self, key: Bucket) -> None:
        try:
            graph = _Graph(self._base, self._kv, self._block(key), key[0], self._width, self._logits[: key[0]])
            graph.replay = self._capture.capture(graph.compute)
        except RuntimeError as error:  # out of memory, and all that CUDA or torch cannot capture
            self._note(key, error)
        else:
            self._graphs[key] = graph
            self._failed.pop(key, None)

    def _block(self, key: Bucket) -> IndexedBlock | StaticBlock | None:
        """What applies the adapters in a graph. Replays never overlap, so that by index serves all graphs."""
        rows, ranks = key
        if not ranks:
            return None
        return StaticBlock(self._bank, rows, ranks) if self._indexed is None else self._indexed

    def _note(self, key: Bucket, error: RuntimeError) -> None:
        """Decide whether and when a bucket that could not be captured is tried again."""
        failed = self._failed.setdefault(key, _Failed())
        failed.tries += 1
        again = out_of_memory(error) and failed.tries < TRIES
        failed.wait = PATIENCE << failed.tries - 1 if again else 0
        self._broken = self._broken or isinstance(error, CaptureBroken)
        self.failures += 1
        level = logging.WARNING if self.failures == 1 else logging.DEBUG
        then = "captures end" if self._broken else "it is tried again later" if again else "it is given up"
        log.log(level, "no CUDA graph for steps of %d rows and %d rank rows; %s: %s", *key, then, error)


@dataclass(slots=True)
class _Failed:
    """A bucket that was tried in vain. ``wait``: its steps until the next try; 0 or less: there is none."""

    tries: int = 0
    wait: int = 0


class _Graph:
    """A captured forward, its input buffers and the way in and out. New, all its rows are padding."""

    replay: Callable[[], None]

    def __init__(
        self,
        base: ResidentBase,
        kv: KVPool,
        block: IndexedBlock | StaticBlock | None,
        rows: int,
        width: int,
        logits: Tensor,
    ) -> None:
        self._base, self._block, self._logits = base, block, logits
        self._tokens = torch.zeros(3, rows, dtype=torch.long, device=base.device)
        self._ids, self._positions, self._wanted = self._tokens
        self._attention = DecodeAttention(kv, rows, width)

    def compute(self) -> None:
        """What is captured."""
        routing = None if self._block is None else Routing((self._block,))
        self._logits.copy_(self._base.forward(self._positions, self._attention, routing, self._wanted, ids=self._ids))

    def run(
        self,
        ids: Sequence[int],
        wanted: Sequence[int],
        spans: Sequence[Span],
        segments: tuple[RowSegment, ...],
        fill: Callable[[Tensor], None],
    ) -> Tensor:
        tokens = torch.zeros(self._tokens.shape, dtype=torch.long)
        for row, values in zip(tokens, (ids, [s.start for s in spans], wanted), strict=True):
            row[: len(values)] = torch.tensor(values, dtype=torch.long)
        upload(self._tokens, tokens)
        fill(self._ids)
        self._attention.fill(spans)
        if self._block is not None:
            self._block.fill(segments)
        self.replay()
        return self._logits[: len(wanted)].clone()  # the next step overwrites them; some rows are kept for longer


def _upto(buckets: Sequence[int], most: int) -> list[int]:
    """The buckets below ``most``, and the first that reaches it, cut to it."""
    return sorted({min(b, most) for b in buckets})


def _vocabulary(base: ResidentBase) -> int:
    """Width of the logits, which some models pad beyond the vocabulary."""
    return int(base.model.get_output_embeddings().weight.shape[0])
