"""What runs in the next step: a pure machine over clock, pages and requests that knows no tensor.

No phases: a sequence has tokens and a count of those computed, and a step makes the counts catch up within a token
budget. Running sequences come first (each needs one token when it generates), then half-done prompts, then new
requests, chosen by the Virtual Token Counter (arXiv 2401.00588): the tenant that has been served least, where a
token counts more the more rank its stack brings. When pages run out the youngest running sequence is set back and
computed again later.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace

from ...core.errors import Code, Error
from ...core.types import Stack
from .pages import PagePool, prefix_root
from .plan import Admission, Limits, StepPlan, Work
from .sequence import Sequence, State

__all__ = ["PATIENCE", "RANK_COST", "Admission", "Limits", "Scheduler", "StepPlan", "Work"]

RANK_COST = 1 / 64
"""Extra cost of a token per rank of its stack: a stack of rank 64 counts double."""

PATIENCE = 32
"""Requests with adapters that may start before one whose own find no room; then those in use are let run out."""


class Scheduler:
    """Owns all live sequences and their pages.

    ``pin`` is asked at admission: READY means that the stack is resident and now pinned; ``unpin`` is called exactly
    once for it when the sequence leaves the running set. Any other answer stands until :meth:`landed` or until
    something is unpinned, and is not asked for again before. ``ready`` is asked first: False keeps a sequence waiting.
    """

    def __init__(
        self,
        pages: PagePool,
        limits: Limits,
        *,
        base_id: str,
        salt: Callable[[str], bytes],
        pin: Callable[[Sequence], Admission],
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
        self._refused: dict[str, tuple[Admission, int]] = {}  # what pin said of a waiting one, at which _room
        self._room = 0  # counts the moments at which room for adapters came free

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
        self._refused.pop(seq.id, None)
        del self._all[seq.id]

    def landed(self, digest: str) -> None:
        """An adapter is in memory: those who wait for it are tried again."""
        for id in list(self._refused):
            if any(e.adapter.digest == digest for e in self._all[id].stack.entries):
                del self._refused[id]

    def room_changed(self) -> None:
        """There may be more room for adapters than running sequences left: those who found none are tried again."""
        self._room += 1

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
        started: list[str] = []
        admissions = iter(()) if preempted else self._admissions()
        while budget > 0 and len(self._running) < self.limits.max_running:
            admitted = next(admissions, None)
            if admitted is None:
                break
            if not admitted.admitted:
                admitted.num_cached, admitted.admitted = admitted.num_computed, True
                started.append(admitted.id)
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
            tuple(started),
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

    def _admissions(self) -> Iterator[Sequence]:
        """Move waiting sequences to running, one at a time: the least served tenant's first, as far as they can start.

        One whose adapters are not there holds up nobody: those whose adapters are resident overtake it, PATIENCE of
        them at most where it only finds no room.
        """
        refused: list[Sequence] = []  # those whose adapters find no room beside the ones in use
        out_of_patience = False
        for tenant in sorted((t for t, q in self._waiting.items() if q), key=lambda t: self._served.get(t, 0.0)):
            for seq in list(self._waiting[tenant]):
                if (seq.stack and out_of_patience) or not self._ready(seq):
                    continue  # ready: its grammar is compiled
                admission = self._ask(seq)
                if admission is not Admission.READY:
                    if admission is Admission.FULL:
                        refused.append(seq)
                        out_of_patience = out_of_patience or seq.num_overtaken >= PATIENCE
                    continue
                if not self._start(seq):
                    if seq.stack:
                        self._unpin(seq.stack)
                    return  # overtaken for want of pages, a large request might wait for ever
                for other in refused if seq.stack else ():
                    other.num_overtaken += 1
                    out_of_patience = out_of_patience or other.num_overtaken >= PATIENCE
                yield seq

    def _ask(self, seq: Sequence) -> Admission:
        """Whether the stack of ``seq`` is pinned now; bank and disk are asked only where something has changed."""
        if not seq.stack:
            return Admission.READY
        last, room = self._refused.get(seq.id, (Admission.READY, 0))
        if last is Admission.LOADING or (last is Admission.FULL and room == self._room):
            return last
        admission = self._pin(seq)
        if admission is Admission.READY:
            self._refused.pop(seq.id, None)
        else:
            self._refused[seq.id] = admission, self._room
        return admission

    def _start(self, seq: Sequence) -> bool:
        """Give a waiting sequence the pages of its known prefix and let it run; False if pages are short."""
        root = prefix_root(self._base_id, self._salt(seq.tenant), seq.stack)
        # Scores need the logits of every position, which kept pages do not hold.
        hit = self.pages.match(root, seq.tokens) if seq.score_from is None else []
        fresh = self.pages.needed(min(len(seq.tokens) + 1, seq.limit)) - len(hit)
        if fresh > self.pages.available - self.pages.kept_among(hit):
            return False
        self._waiting[seq.tenant].remove(seq)
        self.pages.take(hit)
        seq.pages = list(hit)
        seq.num_computed = len(hit) * self.pages.page_size
        keys = [root]
        for i, page in enumerate(hit):
            block = seq.tokens[i * self.pages.page_size : (i + 1) * self.pages.page_size]
            keys.append(self.pages.publish(keys[-1], block, page))
        self._chains[seq.id] = keys
        seq.state, seq.num_overtaken = State.RUNNING, 0
        self._running.append(seq)
        return True

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
        if seq.stack:
            self._unpin(seq.stack)
            self._room += 1

    def _charge(self, seq: Sequence, tokens: int) -> None:
        self._served[seq.tenant] = self._served.get(seq.tenant, 0.0) + tokens * (1 + RANK_COST * seq.stack.rank)

    def _active_tenants(self) -> set[str]:
        return {t for t, q in self._waiting.items() if q} | {s.tenant for s in self._running}
