"""Turns a plan into logits: the step's tensors, its attention and its routing over the resident base."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ...core.types import Stack
from ...lora.bank import AdapterBank
from ...lora.routing import Routing, Segment, plan_blocks
from ...model.kv import KVPool, PagedAttention, Span
from ...model.resident import ResidentBase
from ..scheduling.plan import StepPlan, Work
from ..scheduling.sequence import Sequence
from .graphs import DecodeGraphs


@dataclass(frozen=True, slots=True)
class StepOutput:
    """What a step computed: one row per sampling work of the plan, and the rows of what is scored."""

    next_token: Tensor  # [sampling works, vocabulary]
    scores: Mapping[str, Tensor]  # id -> [positions, vocabulary]


class ModelRunner:
    """Runs plans on the resident base, its KV pages and its adapters; decode steps as graphs where there are any."""

    def __init__(self, base: ResidentBase, kv: KVPool, bank: AdapterBank, graphs: DecodeGraphs | None = None) -> None:
        self.base, self.kv, self.bank, self.graphs = base, kv, bank, graphs
        self._route = lru_cache(maxsize=4)(self._plan_routing)
        bank.on_change = self._route.cache_clear

    @torch.inference_mode()
    def run(self, plan: StepPlan, sequences: Mapping[str, Sequence]) -> StepOutput:
        """Compute a plan: keys and values go to its pages, logits come back for what asks for them."""
        ids: list[int] = []
        positions: list[int] = []
        sampled: list[int] = []
        scored: dict[str, list[int]] = {}
        rows: list[tuple[int, Stack]] = []
        for work in plan.work:
            seq, first = sequences[work.id], len(ids)
            ids += seq.tokens[work.start : work.start + work.length]
            positions += range(work.start, work.start + work.length)
            rows.append((work.length, seq.stack))
            if seq.score_from is not None:
                scored[seq.id] = [first + p - work.start for p in scored_positions(work, seq)]
            elif work.samples:
                sampled.append(first + work.length - 1)
        wanted = sampled + [row for rows_ in scored.values() for row in rows_]
        spans = [Span(w.start, w.length, w.pages) for w in plan.work]
        self._clear_begun(plan.work)
        logits = None
        if self.graphs is not None and plan.kind == "decode":
            logits = self.graphs.run(ids, wanted, spans, [stack for _, stack in rows])
        if logits is None:
            device = self.base.device
            logits = self.base.forward(
                torch.tensor(positions, device=device),
                PagedAttention(self.kv, spans),
                self._route(tuple(rows)),
                torch.tensor(wanted or [0], device=device),  # a step that only fills pages still projects one row
                ids=torch.tensor(ids, device=device),
            )[: len(wanted)]
        parts = logits.split([len(sampled), *map(len, scored.values())])
        return StepOutput(parts[0], dict(zip(scored, parts[1:], strict=True)))

    def _clear_begun(self, works: tuple[Work, ...]) -> None:
        """Zero the pages that the step begins and does not fill.

        Attention reads whole pages and masks what is beyond the sequence; NaN that a former owner left there would
        pass through the mask.
        """
        size = self.kv.shape.page_size
        begun = [w.pages[-1] for w in works if w.start <= (len(w.pages) - 1) * size and (w.start + w.length) % size]
        for page in begun:
            self.kv.keys[:, page].zero_()
            self.kv.values[:, page].zero_()

    def _plan_routing(self, rows: tuple[tuple[int, Stack], ...]) -> Routing | None:
        blocks = plan_blocks(self.bank, [Segment.of(self.bank, length, stack) for length, stack in rows])
        return Routing(tuple(blocks)) if blocks else None


def scored_positions(work: Work, seq: Sequence) -> range:
    """Positions of this chunk whose logits score a wanted token (the one after each)."""
    assert seq.score_from is not None
    first = max(work.start, seq.score_from - 1)
    return range(first, min(work.start + work.length, len(seq.tokens) - 1))
