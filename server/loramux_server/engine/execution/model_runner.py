"""Turns a plan into logits: the step's tensors, its attention and its routing over the resident base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ...lora.bank import AdapterBank
from ...lora.buffers import on_device
from ...lora.routing import Routing, plan_blocks
from ...lora.slots import RowSegment
from ...model.kv import KVPool, PagedAttention, Span
from ...model.resident import ResidentBase
from ..scheduling.plan import StepPlan, Work
from .graphs import Graphs, PackedStep


@dataclass(frozen=True, slots=True)
class Chosen:
    """Tokens that the device chose and the host does not know yet."""

    tokens: Tensor  # [rows]
    row_of: Mapping[str, int]  # id of the sequence -> row

    def fill(self, ids: Tensor, works: Sequence[Work]) -> None:
        """Put them in their places among ``ids`` [rows of a step of ``works``], without waiting for the device."""
        places: list[int] = []
        rows: list[int] = []
        at = 0
        for work in works:
            if work.pending:
                places.append(at)
                rows.append(self.row_of[work.id])
            at += work.rows
        if places:
            where, source = on_device(places, ids.device), on_device(rows, ids.device)
            ids.index_copy_(0, where, self.tokens.index_select(0, source))


NONE_CHOSEN = Chosen(torch.empty(0, dtype=torch.long), {})


@dataclass(frozen=True, slots=True)
class StepOutput:
    """What a step computed: rows of the sampling works, and of what is scored or pooled."""

    next_token: Tensor  # [sampling works and tokens of their drafts, vocabulary], a work's rows together
    scores: Mapping[str, Tensor]  # id -> [positions, vocabulary]
    states: Mapping[str, Tensor]  # id -> [positions, hidden]


class ModelRunner:
    """Runs plans on the resident base, its KV pages and its adapters; steps as graphs where there are any."""

    def __init__(self, base: ResidentBase, kv: KVPool, bank: AdapterBank, graphs: Graphs | None = None) -> None:
        self.base, self.kv, self.bank, self.graphs = base, kv, bank, graphs
        # Where each adapter lies is part of a segment, so equal ones are routed equally whatever was swapped.
        self._route = lru_cache(maxsize=4)(self._plan_routing)

    @torch.inference_mode()
    def run(self, plan: StepPlan, chosen: Chosen = NONE_CHOSEN) -> StepOutput:
        """Compute a plan, whose swaps are done: keys and values go to its pages, logits come back where it asks.

        On a GPU the step is launched, and not waited for. ``chosen`` has the tokens that are pending in the plan.
        """
        ids: list[int] = []
        positions: list[int] = []
        sampled: list[int] = []
        scored: dict[str, list[int]] = {}
        pooled: dict[str, slice] = {}
        for work in plan.work:
            first = len(ids)
            ids += work.tokens + work.draft
            positions += work.positions
            if work.samples:
                sampled += range(len(ids) - 1 - len(work.draft), len(ids))
            if work.scored:
                scored[work.id] = [first + position - work.start for position in work.scored]
            if work.pooled:
                pooled[work.id] = slice(first + work.pooled.start - work.start, first + work.pooled.stop - work.start)
        wanted = sampled + [row for rows in scored.values() for row in rows]
        spans = [span for w in plan.work for span in _spans(w)]
        segments = tuple(RowSegment(w.rows, w.stack) for w in plan.work)
        for work in plan.work:
            if work.copy is not None:
                self.kv.copy(work.copy.source, work.copy.target, work.copy.tokens)
        self._clear_begun(plan.work)
        logits = None
        states: Tensor | None = None
        if self.graphs is not None and not pooled:
            logits = self.graphs.run(PackedStep(ids, wanted, spans, segments, lambda ids: chosen.fill(ids, plan.work)))
        if logits is None:
            device = self.base.device
            given = on_device(positions, device), PagedAttention(self.kv, spans), self._route(segments)
            rows = on_device(wanted or [0], device)  # a step that only fills pages still projects one row
            tokens = on_device(ids, device)
            chosen.fill(tokens, plan.work)
            if pooled:
                states = self.base.states(*given, ids=tokens)
                logits = self.base.logits(states[rows]) if wanted else states.new_empty(0, 1)
            else:
                logits = self.base.forward(*given, rows, ids=tokens)
            logits = logits[: len(wanted)]
        parts = logits.split([len(sampled), *map(len, scored.values())])
        kept = {} if states is None else {id: states[where] for id, where in pooled.items()}
        return StepOutput(parts[0], dict(zip(scored, parts[1:], strict=True)), kept)

    def _clear_begun(self, works: tuple[Work, ...]) -> None:
        """Zero the pages that the step begins and does not fill.

        Attention reads whole pages and masks what is beyond the sequence; NaN that a former owner left there would
        pass through the mask.
        """
        size = self.kv.shape.page_size
        ends = [(w, w.positions.stop) for w in works]
        begun = [w.pages[end // size] for w, end in ends if end // size * size in w.positions]
        for page in begun:
            self.kv.keys[:, page].zero_()
            self.kv.values[:, page].zero_()

    def _plan_routing(self, segments: tuple[RowSegment, ...]) -> Routing | None:
        blocks = plan_blocks(self.bank, segments)
        return Routing(tuple(blocks)) if blocks else None


def _spans(work: Work) -> list[Span]:
    """A work's spans: one, or one a row where there is a draft, so that it is computed as decoding is.

    All keys and values are written before any row attends, so a row finds those of the rows before it.
    """
    if not work.draft:
        return [Span(work.start, work.length, work.pages)]
    return [Span(position, 1, work.pages) for position in work.positions]
