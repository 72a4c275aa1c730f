"""What the scheduler says: plain frozen values that hold all that a step needs, so that tests compare them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from enum import Enum, auto

from ...core.types import Pooling
from ...lora.slots import Entries, Swap
from .contention import Mix
from .pages import PageCopy
from .sequence import Sequence

NO_POSITIONS = range(0)


@dataclass(frozen=True, slots=True)
class Work:
    """Part of a step: compute ``tokens``, the first of which is at position ``start`` of a sequence."""

    id: str
    start: int
    tokens: tuple[int, ...]
    pages: tuple[int, ...]
    """KV pages of the sequence from its first token to the last of these."""
    stack: Entries = ()
    samples: bool = False
    """Whether a new token is chosen from the logits of the last of these."""
    scored: range = NO_POSITIONS
    """Positions whose logits score the token that follows."""
    pooled: range = NO_POSITIONS
    """Positions whose hidden states become part of an embedding."""
    draft: tuple[int, ...] = ()
    """Tokens that may follow ``tokens``, computed with them: each has a row of logits too."""
    copy: PageCopy | None = None
    """What goes into a page of the sequence first: a prefix that is cached in another."""
    pending: bool = False
    """Whether ``tokens`` is one that only the device knows, and 0 here."""

    @classmethod
    def of(
        cls, seq: Sequence, length: int, stack: Entries, draft: tuple[int, ...] = (), copy: PageCopy | None = None
    ) -> Work:
        """The next ``length`` tokens of a sequence, and a draft of those after, for which it has the pages."""
        start, end = seq.num_computed, seq.num_computed + length
        tokens, pages = tuple(seq.tokens[start:end]), tuple(seq.pages)
        if seq.pending:
            return cls(seq.id, start, (0,), pages, stack, samples=True, pending=True)
        if seq.pooling is not None:
            first = start if seq.pooling is Pooling.MEAN else max(start, len(seq.tokens) - 1)
            return cls(seq.id, start, tokens, pages, stack, pooled=range(first, end))
        if seq.score_from is None:
            samples = end == len(seq.tokens)
            return cls(seq.id, start, tokens, pages, stack, samples=samples, draft=draft, copy=copy)
        scored = range(max(start, seq.score_from - 1), min(end, len(seq.tokens) - 1))
        return cls(seq.id, start, tokens, pages, stack, scored=scored)

    @property
    def length(self) -> int:
        return len(self.tokens)

    @property
    def end(self) -> int:
        """The position after the last token, before the draft."""
        return self.start + len(self.tokens)

    @property
    def rows(self) -> int:
        """Tokens to compute, those of the draft included."""
        return len(self.tokens) + len(self.draft)

    @property
    def positions(self) -> range:
        """Where they stand in the sequence."""
        return range(self.start, self.start + self.rows)


@dataclass(frozen=True, slots=True)
class StepPlan:
    """A step: swaps in their order, then generating sequences (adapted before bare), then prompt chunks."""

    work: tuple[Work, ...] = ()
    preempted: tuple[str, ...] = ()
    started: tuple[str, ...] = ()
    """Those that run for the first time."""
    swaps: tuple[Swap, ...] = ()
    """What the device must load before it computes: slots in ``work`` are those after it."""
    mix: Mix = field(default=Mix(), compare=False)
    """Whose tokens these are, for :meth:`.contention.Contention.measured`."""

    @property
    def tokens(self) -> int:
        """Rows of the step."""
        return sum(w.rows for w in self.work)

    @property
    def kind(self) -> str:
        """``decode`` when every sequence adds one token and what its draft gave, else ``prefill``."""
        return "decode" if all(w.length == 1 for w in self.work) else "prefill"

    def without(self, ids: Collection[str]) -> StepPlan:
        """What is left of the step when these sequences are gone, and its swaps are done."""
        return StepPlan(
            tuple(w for w in self.work if w.id not in ids),
            self.preempted,
            tuple(id for id in self.started if id not in ids),
            mix=self.mix,
        )


class Admission(Enum):
    """Whether a sequence's stack could be acquired."""

    READY = auto()
    LOADING = auto()
    """Not in memory until a read ends."""
    FULL = auto()
    """No capacity until something running ends."""


@dataclass(frozen=True, slots=True)
class StepLimits:
    """Bounds of a step and of the queue."""

    max_batch_tokens: int = 512
    max_running: int = 64
    max_queue: int = 1024
    tenant_slowdown: float = 1.2
    """How many times longer than alone the steps of the lightest tenant may be beside others'; 0: no bound."""

    def at_most(self, max_batch_tokens: int) -> StepLimits:
        """The same for steps of no more than ``max_batch_tokens``."""
        return replace(
            self,
            max_batch_tokens=min(max_batch_tokens, self.max_batch_tokens),
            max_running=min(max_batch_tokens, self.max_running),
        )
