"""Steps replayed as graphs: one launch in place of hundreds of small ones.

A graph has fixed shapes and addresses, so a step is padded to the next *bucket* of rows. Its inputs are copied into the
graph's buffers. Rows that are padding write to the scratch page and are dropped. Where the kernels by index run, each
bucket has a graph with adapters and one without, captured at the start: they read from the device which rank rows of
the bank act. Elsewhere the adapters' weights are gathered inside the graph, buckets are of rank rows too, and those
with adapters are captured when first needed. What fits no graph runs as it is.

Graphs come in families that differ in the steps they are for (:mod:`.graph_families`).
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ...lora.bank import AdapterBank
from ...lora.blocks import IndexedBlock, StaticBlock, used_ranks
from ...lora.buffers import upload
from ...lora.routing import Routing
from ...lora.slots import RowSegment
from ...model.base.context_length import max_context
from ...model.kv import KVPool, Span, StaticAttention
from ...model.out_of_memory import out_of_memory
from ...model.resident import ResidentBase
from .capture import Capture, CaptureBroken

log = logging.getLogger(__name__)

RANKS = (0, 16, 32, 64, 128, 256, 512)
"""Rank rows that a step's adapters use together, where they are gathered; 0 is the base alone."""
MOST = 48
"""Graphs kept. Further buckets are served by a larger one that there is."""
PATIENCE = 256
"""Steps that need a bucket before it is tried again, after its capture ran out of memory for the first time."""
TRIES = 4

Bucket = tuple[int, int]
"""Rows and rank rows of a graph."""


@dataclass(frozen=True, slots=True)
class PackedStep:
    """The rows of a step, laid end to end as a forward pass computes them."""

    ids: Sequence[int]
    wanted: Sequence[int]
    """Rows whose logits are asked for, each at most once."""
    spans: Sequence[Span]
    segments: tuple[RowSegment, ...]
    fill: Callable[[Tensor], None]
    """Puts tokens that only the device knows among the ids there."""


class Graphs(Protocol):
    """Graphs of steps, as their runner sees them."""

    @property
    def count(self) -> int:
        """Graphs captured and kept."""
        ...

    @property
    def failures(self) -> int:
        """Captures that failed."""
        ...

    def run(self, step: PackedStep) -> Tensor | None:
        """Logits [len(wanted), vocabulary] of a step, or None to compute it eagerly. Runs in inference mode."""
        ...


@dataclass(slots=True)
class Parts:
    """What all graphs of an engine share: replays never overlap."""

    base: ResidentBase
    kv: KVPool
    bank: AdapterBank
    capture: Capture
    logits: Tensor
    """float32 [most rows, vocabulary]: outputs of their own would be kept for each."""
    indexed: IndexedBlock | None
    """What applies adapters by index."""
    failures: int = 0
    """Captures that failed."""
    broken: bool = False
    """Whether nothing may be captured any more."""

    @classmethod
    def of(cls, base: ResidentBase, kv: KVPool, bank: AdapterBank, capture: Capture, rows: int, most: int) -> Parts:
        """For up to ``rows`` rows of logits, and routes as those of ``most`` rows that decode."""
        logits = torch.zeros(rows, vocabulary(base), device=base.device)
        return cls(base, kv, bank, capture, logits, IndexedBlock.for_decoding(bank, most) if bank.by_index else None)

    @property
    def nbytes(self) -> int:
        return self.logits.nbytes + self.capture.nbytes


class GraphFamily:
    """Graphs for steps of some kind, by buckets. It belongs to the thread that owns the model.

    A bucket that cannot be captured is given up, and its steps run in a larger one or eagerly. Where only memory was
    missing, it is tried again after ``PATIENCE`` of its steps, and then after twice as many, ``TRIES`` times in all.
    The first failure of all families is logged.
    """

    def __init__(self, parts: Parts, rows: Sequence[int], *, spans: int | None = None, context: int | None = None):
        """For steps of up to so many ``rows``, in ascending order.

        ``spans``: sequences of a step with prompts; None: all spans have length 1. ``context``: tokens that a sequence
        may have at most, where not the model's. Attention splits long contexts over a GPU by what there may be.
        """
        self._parts, self._rows, self._spans = parts, tuple(rows), spans
        bank, page = parts.bank, parts.kv.shape.page_size
        self._ranks = sorted({0, bank.rows}) if parts.indexed is not None else upto(RANKS, bank.rows)
        longest = max_context(parts.base.model)
        self._width = min(-(-min(context or longest, longest) // page), parts.kv.pages)
        self._graphs: dict[Bucket, _Graph] = {}
        self._failed: dict[Bucket, _Failed] = {}

    @property
    def count(self) -> int:
        """Graphs captured and kept."""
        return len(self._graphs)

    @property
    def buckets(self) -> list[Bucket]:
        """The buckets that there are graphs for, in ascending order."""
        return sorted(self._graphs)

    @property
    def failures(self) -> int:
        """Captures that failed."""
        return self._parts.failures

    @property
    def only_decodes(self) -> bool:
        """Whether its steps have no prompts."""
        return self._spans is None

    @property
    def at_start(self) -> list[Bucket]:
        """Buckets of the base's own graphs, and of those with adapters where these are few.

        Largest first: the smaller ones then find room in the memory of that one.
        """
        ranks = (0,) if self._parts.indexed is None else self._ranks
        return [(rows, r) for rows in reversed(self._rows) for r in ranks]

    @torch.inference_mode()
    def prepare(self, buckets: Iterable[Bucket] | None = None) -> None:
        """Capture the graphs of some buckets; None: of all that are captured at the start."""
        for bucket in self.at_start if buckets is None else buckets:
            if not self._parts.broken:
                self._add(bucket)

    def run(self, step: PackedStep) -> Tensor | None:
        """As :meth:`Graphs.run`; None where no graph of this family is for the step."""
        page = self._parts.kv.shape.page_size
        if any(s.end > self._width * page for s in step.spans):
            return None
        if self._spans is None and any(s.length > 1 for s in step.spans):
            return None
        if self._spans is not None and max(len(step.spans), len(step.wanted)) > self._spans:
            return None
        graph = self._find(len(step.ids), used_ranks(step.segments))
        return None if graph is None else graph.run(step)

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
        if failed is None or self._parts.broken:
            return not self._parts.broken
        failed.wait -= 1
        return failed.wait == 0

    def _add(self, key: Bucket) -> None:
        rows, spans = key[0], self._spans or key[0]
        try:
            attention = StaticAttention(self._parts.kv, rows, spans, self._width)
            graph = _Graph(self._parts.base, attention, self._block(key), rows, self._parts.logits[:spans])
            graph.replay = self._parts.capture.capture(graph.compute)
        except RuntimeError as error:  # out of memory, and all that CUDA or torch cannot capture
            self._note(key, error)
        else:
            self._graphs[key] = graph
            self._failed.pop(key, None)

    def _block(self, key: Bucket) -> IndexedBlock | StaticBlock | None:
        """What applies the adapters in a graph. It routes nothing yet."""
        rows, ranks = key
        if not ranks:
            return None
        if (indexed := self._parts.indexed) is None:
            return StaticBlock(self._parts.bank, rows, ranks)
        indexed.fill(())  # the step before may have had more rows than this graph has
        return indexed

    def _note(self, key: Bucket, error: RuntimeError) -> None:
        """Decide whether and when a bucket that could not be captured is tried again."""
        failed = self._failed.setdefault(key, _Failed())
        failed.tries += 1
        again = out_of_memory(error) and failed.tries < TRIES
        failed.wait = PATIENCE << failed.tries - 1 if again else 0
        self._parts.broken |= isinstance(error, CaptureBroken)
        self._parts.failures += 1
        level = logging.WARNING if self._parts.failures == 1 else logging.DEBUG
        then = "captures end" if self._parts.broken else "it is tried again later" if again else "it is given up"
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
        attention: StaticAttention,
        block: IndexedBlock | StaticBlock | None,
        rows: int,
        logits: Tensor,  # [most that are wanted, vocabulary]
    ) -> None:
        self._base, self._block, self._attention, self._logits = base, block, attention, logits
        self._tokens = torch.zeros(3, rows, dtype=torch.long, device=base.device)
        self._ids, self._positions = self._tokens[:2]
        self._wanted = self._tokens[2, : len(logits)]

    def compute(self) -> None:
        """What is captured."""
        routing = None if self._block is None else Routing((self._block,))
        self._logits.copy_(self._base.forward(self._positions, self._attention, routing, self._wanted, ids=self._ids))

    def run(self, step: PackedStep) -> Tensor:
        tokens = torch.zeros(self._tokens.shape, dtype=torch.long)
        positions = [p for s in step.spans for p in s.positions]
        for row, values in zip(tokens, (step.ids, positions, step.wanted), strict=True):
            row[: len(values)] = torch.tensor(values, dtype=torch.long)
        upload(self._tokens, tokens)
        step.fill(self._ids)
        self._attention.fill(step.spans)
        if self._block is not None:
            self._block.fill(step.segments)
        self.replay()
        return self._logits[: len(step.wanted)].clone()  # the next step overwrites them; some rows are kept for longer


def upto(buckets: Sequence[int], most: int) -> list[int]:
    """The buckets below ``most``, and the first that reaches it, cut to it."""
    return sorted({min(b, most) for b in buckets})


def vocabulary(base: ResidentBase) -> int:
    """Width of the logits, which some models pad beyond the vocabulary."""
    return int(base.model.get_output_embeddings().weight.shape[0])
