"""What runs in the next step: a pure machine over clock, pages and requests that knows no tensor.

No phases: a sequence has tokens and a count of those computed, and a step makes the counts catch up within a token
budget. Running sequences come first (each needs one token when it generates), then half-done prompts, then new
requests, chosen by the Virtual Token Counter (arXiv 2401.00588): the tenant that has been served least, where a
token counts more the more rank its stack brings. When pages run out the youngest running sequence is set back and
computed again later.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum, auto

from ..core.errors import Code, Error
from ..core.types import Stack
from .pages import PagePool, prefix_root
from .sequence import Sequence, State

RANK_COST = 1 / 64
"""Extra cost of a token per rank of its stack: a stack of rank 64 counts double."""

PATIENCE = 32
"""Requests with adapters that may start before one whose own find no room; then those in use are let run out."""


@dataclass(frozen=True, slots=True)
class Work:
    """Part of a step: compute tokens [start, start + length) of a sequence, whose pages are ``pages``."""

    id: str
    start: int
    length: int
    pages: tuple[int, ...]
    samples: bool
    """Whether the last of these tokens is the sequence's last, so that a new one is chosen."""


@dataclass(frozen=True, slots=True)
class StepPlan:
    """A step: generating sequences first (adapted before bare), then prompt chunks."""

    work: tuple[Work, ...] = ()
    preempted: tuple[str, ...] = ()

    @property
    def tokens(self) -> int:
        return sum(w.length for w in self.work)

    @property
    def kind(self) -> str:
        """``decode`` when every sequence adds one token, else ``prefill``."""
        return "decode" if all(w.length == 1 for w in self.work) else "prefill"


class Admission(Enum):
    """What the adapter bank says of a stack."""

    READY = auto()
    LOADING = auto()
    FULL = auto()
    """No room until something running ends."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of a step and of the queue."""

    max_batch_tokens: int = 512
    max_running: int = 64
    max_queue: int = 1024


class Scheduler:
    """Owns all live sequences and their pages.

    ``pin`` is asked at admission: READY means that the stack is resident and now pinned; ``unpin`` is called exactly
    once for it when the sequence leaves the running set. ``ready`` is asked before: False keeps a sequence waiting.
    """

    def __init__(
        self,
        pages: PagePool,
        limits: Limits,
        *,
        base_id: str,
        salt: Callable[[str], bytes],
        pin: Callable[[Stack], Admission],
        unpin: Callable[[Stack], None],
        ready: Callable[[Sequence], bool] = lambda seq: True,
    ) -> None:
        self.pages, self.limits = pages, limits
        self.preemptions = 0
        self._base_id, self._salt, self._pin, self._unpin = base_id, salt, pin, unpin
        self._ready = ready
        self._all: dict[str, Sequence] = {}
        self._running: list[Sequence] = []  # oldest first
        self._waiting: dict[str, deque[Sequence]] = {}
        self._served: dict[str, float] = {}  # virtual token counter of each tenant
        self._chains: dict[str, list[bytes]] = {}  # prefix keys of a running sequence's full pages, root first

    # -- requests ---------------------------------------------------------------------------------------------

    def add(self, seq: Sequence) -> None:
        """Queue a sequence. RESOURCE_EXHAUSTED when the queue is full or the cache could never hold it."""
        if seq.id in self._all:
            raise Error(Code.ALREADY_EXISTS, f"request id {seq.id!r} is in use")
        if self.pages.needed(seq.limit) > self.pages.pages:
            room = self.pages.pages * self.pages.page_size
            raise Error(
                Code.RESOURCE_EXHAUSTED,
                f"the request may need {seq.limit} tokens of KV cache and there are {room}; "
                "lower max_tokens or raise --kv-cache-memory",
                reason="KV_CACHE_TOO_SMALL",
            )
        if self.num_waiting >= self.limits.max_queue:
            raise Error(
                Code.RESOURCE_EXHAUSTED,
                f"the queue is full ({self.limits.max_queue} requests wait)",
                reason="QUEUE_FULL",
                retry_after=1.0,
            )
        if not self._waiting.get(seq.tenant) and not any(s.tenant == seq.tenant for s in self._running):
            # Back from idle: no credit is saved up while away.
            active = [self._served[t] for t in self._active_tenants()]
            self._served[seq.tenant] = max(self._served.get(seq.tenant, 0.0), min(active, default=0.0))
        self._all[seq.id] = seq
        self._waiting.setdefault(seq.tenant, deque()).append(seq)

    def get(self, id: str) -> Sequence | None:
        return self._all.get(id)

    def finish(self, seq: Sequence) -> None:
        """Take a sequence out, whatever its state, and free what it holds. A second call does nothing."""
        if seq.state is State.FINISHED:
            return
        if seq.state is State.RUNNING:
            self._leave_running(seq)
        else:
            self._waiting[seq.tenant].remove(seq)
        seq.state = State.FINISHED
        del self._all[seq.id]

    def expired(self, now: float) -> list[Sequence]:
        """Sequences whose deadline has passed, waiting or running."""
        return [s for s in self._all.values() if s.deadline is not None and s.deadline <= now]

    @property
    def waiting(self) -> list[Sequence]:
        """Sequences that are not running, in no order."""
        return [seq for queue in self._waiting.values() for seq in queue]

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        return sum(len(q) for q in self._waiting.values())

    @property
    def sequences(self) -> list[Sequence]:
        return list(self._all.values())

    # -- the step ---------------------------------------------------------------------------------------------

    def schedule(self) -> StepPlan:
        """Choose the next step and hand out the pages that it writes to."""
        budget = self.limits.max_batch_tokens
        preempted: list[str] = []
        chosen: list[tuple[Sequence, int]] = []
        # sorted: those that generate first, so that a long prompt never takes a token from a running answer.
        for seq in sorted(self._running, key=lambda s: s.num_left > 1):
            # None left: its next token waits for something other than the model.
            if seq.state is not State.RUNNING or budget == 0 or seq.num_left == 0:
                continue
            length = min(seq.num_left, budget)
            if self._grow(seq, length, preempted, chosen):
                chosen.append((seq, length))
                budget -= length
        while budget > 0 and not preempted and len(self._running) < self.limits.max_running:
            admitted = self._admit()
            if admitted is None:
                break
            length = min(admitted.num_left, budget)
            self._grow(admitted, length, preempted, chosen)
            chosen.append((admitted, length))
            budget -= length
        chosen.sort(key=lambda c: (c[1] > 1, not any(e.weight for e in c[0].stack.entries)))
        for seq, length in chosen:
            self._charge(seq, length)
        return StepPlan(
            tuple(
                Work(s.id, s.num_computed, n, tuple(s.pages), s.num_computed + n == len(s.tokens)) for s, n in chosen
            ),
            tuple(preempted),
        )

    def advance(self, plan: StepPlan) -> None:
        """Note that a plan's tokens are computed, and index the pages that became full."""
        size = self.pages.page_size
        for work in plan.work:
            seq = self._all.get(work.id)
            if seq is None or seq.state is not State.RUNNING:
                continue
            seq.num_computed = work.start + work.length
            keys = self._chains[seq.id]
            while len(keys) * size <= seq.num_computed:
                block = seq.tokens[(len(keys) - 1) * size : len(keys) * size]
                keys.append(self.pages.publish(keys[-1], block, seq.pages[len(keys) - 1]))

    def shrink(self, max_batch_tokens: int) -> None:
        """After an out-of-memory step: set everything running back to waiting, and make no larger steps any more."""
        self.limits = replace(
            self.limits,
            max_batch_tokens=min(max_batch_tokens, self.limits.max_batch_tokens),
            max_running=min(max_batch_tokens, self.limits.max_running),
        )
        for seq in reversed(list(self._running)):
            self._set_back(seq)

    def check_idle(self) -> None:
        """Raise AssertionError if anything is held although nothing lives."""
        self.pages.check()
        if not self._all and (self.pages.held or self._running or self._chains or self.num_waiting):
            raise AssertionError("pages or sequences are held while idle")

    # -- inside -----------------------------------------------------------------------------------------------

    def _grow(self, seq: Sequence, length: int, preempted: list[str], chosen: list[tuple[Sequence, int]]) -> bool:
        """Give ``seq`` pages for ``length`` more tokens, setting back younger ones. False if it is itself set back."""
        missing = self.pages.needed(seq.num_computed + length) - len(seq.pages)
        while missing > self.pages.available:
            victim = self._running[-1]
            self._set_back(victim)
            preempted.append(victim.id)
            chosen[:] = [c for c in chosen if c[0] is not victim]
            if victim is seq:
                return False
        for _ in range(missing):
            seq.pages.append(self.pages.allocate())
        return True

    def _admit(self) -> Sequence | None:
        """Move one waiting sequence to running: the first of the least served tenant that can start now."""
        refused: list[Sequence] = []  # those whose adapters find no room beside the ones in use
        for tenant in sorted((t for t, q in self._waiting.items() if q), key=lambda t: self._served.get(t, 0.0)):
            for seq in self._waiting[tenant]:
                if not self._ready(seq):
                    continue  # its grammar is being compiled
                if seq.stack and any(s.num_overtaken >= PATIENCE for s in refused):
                    continue
                admission = self._pin(seq.stack)
                if admission is not Admission.READY:
                    if admission is Admission.FULL:
                        refused.append(seq)
                    continue  # its adapters hold up nobody else
                root = prefix_root(self._base_id, self._salt(seq.tenant), seq.stack)
                # Scores need the logits of every position, which kept pages do not hold.
                hit = self.pages.match(root, seq.tokens) if seq.score_from is None else []
                fresh = self.pages.needed(min(len(seq.tokens) + 1, seq.limit)) - len(hit)
                if fresh > self.pages.available - self.pages.kept_among(hit):
                    self._unpin(seq.stack)
                    return None  # overtaken for want of pages, a large request might wait for ever
                for other in refused if seq.stack else ():
                    other.num_overtaken += 1
                self._waiting[tenant].remove(seq)
                self.pages.take(hit)
                seq.pages = list(hit)
                seq.num_computed = len(hit) * self.pages.page_size
                if not seq.admitted:
                    seq.num_cached, seq.admitted = seq.num_computed, True
                keys = [root]
                for i in range(len(hit)):
                    block = seq.tokens[i * self.pages.page_size : (i + 1) * self.pages.page_size]
                    keys.append(self.pages.publish(keys[-1], block, hit[i]))
                self._chains[seq.id] = keys
                seq.state = State.RUNNING
                self._running.append(seq)
                return seq
        return None

    def _set_back(self, seq: Sequence) -> None:
        self._leave_running(seq)
        seq.state, seq.num_computed = State.WAITING, 0
        seq.num_preempted += 1
        self.preemptions += 1
        self._waiting.setdefault(seq.tenant, deque()).appendleft(seq)

    def _leave_running(self, seq: Sequence) -> None:
        self._running.remove(seq)
        del self._chains[seq.id]
        self.pages.release(seq.pages)
        seq.pages = []
        self._unpin(seq.stack)

    def _charge(self, seq: Sequence, tokens: int) -> None:
        self._served[seq.tenant] = self._served.get(seq.tenant, 0.0) + tokens * (1 + RANK_COST * seq.stack.rank)

    def _active_tenants(self) -> set[str]:
        return {t for t, q in self._waiting.items() if q} | {s.tenant for s in self._running}
