"""What runs in the next step: a pure machine over clock, pages and requests that knows no tensor.

No phases: a sequence has tokens and a count of those computed, and a step makes the counts catch up within a token
budget. Running sequences come first (each needs one token when it generates), then half-done prompts, then new
requests in the order of :mod:`.fairness`, as far as :mod:`.admission` lets them. When pages run out the youngest
running sequence is preempted and computed again later.
"""

from __future__ import annotations

from collections.abc import Callable

from ...core.errors import Code, Error
from .admission import Adapters, AdmissionControl, check_capacity
from .fairness import FairQueue
from .pages import PagePool
from .plan import StepLimits, StepPlan, Work
from .sequence import Sequence, State


class Scheduler:
    """Owns all live sequences and their pages.

    A sequence's adapters are acquired when it starts and released exactly once, when it stops running. Sequences of
    one ``prefix_root`` share pages; ``ready`` tells whether a waiting one may start at all.
    """

    def __init__(
        self,
        pages: PagePool,
        limits: StepLimits,
        adapters: Adapters,
        prefix_root: Callable[[Sequence], bytes],
        ready: Callable[[Sequence], bool] = lambda seq: True,
    ) -> None:
        self.pages, self.limits, self.preemptions = pages, limits, 0
        self._adapters, self._prefix_root = adapters, prefix_root
        self.admission = AdmissionControl(adapters, ready)
        self._all: dict[str, Sequence] = {}
        self._running: list[Sequence] = []  # oldest first
        self._queue = FairQueue()

    def add(self, seq: Sequence) -> None:
        """Queue a sequence. RESOURCE_EXHAUSTED when the queue is full or the cache could never hold it."""
        if seq.id in self._all:
            raise Error(Code.ALREADY_EXISTS, f"request id {seq.id!r} is in use")
        check_capacity(seq, self.pages, self.limits, self.num_waiting)
        self._all[seq.id] = seq
        self._queue.add(seq)

    def get(self, id: str) -> Sequence | None:
        return self._all.get(id)

    def finish(self, seq: Sequence) -> None:
        """Take a sequence out, whatever its state, and free what it holds. A second call does nothing."""
        if seq.state is State.FINISHED:
            return
        if seq.state is State.RUNNING:
            self._stop(seq)
        else:
            self._queue.remove(seq)
        seq.state = State.FINISHED
        self.admission.forget(seq)
        self._queue.leave(seq)
        del self._all[seq.id]

    def expired(self, now: float) -> list[Sequence]:
        """Sequences whose deadline has passed, waiting or running."""
        return [s for s in self._all.values() if s.deadline is not None and s.deadline <= now]

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        return len(self._queue)

    @property
    def sequences(self) -> list[Sequence]:
        return list(self._all.values())

    def schedule(self) -> StepPlan:
        """Choose the next step and hand out the pages that it writes to."""
        budget = self.limits.max_batch_tokens
        preempted: list[str] = []
        chosen: list[tuple[Sequence, int]] = []
        # sorted: those that generate first, so that a long prompt never takes a token from a running answer.
        for seq in sorted(self._running, key=lambda s: s.num_left > 1):
            if seq.state is not State.RUNNING or budget == 0 or seq.num_left == 0:
                continue  # none left: its next token waits for something other than the model
            length = min(seq.num_left, budget)
            if self._grow(seq, length, preempted, chosen):
                chosen.append((seq, length))
                budget -= length
        started: list[str] = []
        admitted = iter(()) if preempted else self.admission.admit(self._queue, self._start)
        while budget > 0 and len(self._running) < self.limits.max_running and (new := next(admitted, None)) is not None:
            if not new.admitted:
                new.num_cached, new.admitted = new.num_computed, True
                started.append(new.id)
            length = min(new.num_left, budget)
            self._grow(new, length, preempted, chosen)
            chosen.append((new, length))
            budget -= length
        for seq, length in chosen:
            self._queue.charge(seq, length)
        # Now that all are admitted: a swap for one of them may have moved the slots of another.
        work = [Work.of(seq, length, self._adapters.entries(seq.stack)) for seq, length in chosen]
        work.sort(key=lambda w: (w.length > 1, not w.stack))
        return StepPlan(tuple(work), tuple(preempted), tuple(started), self._adapters.drain_swaps())

    def advance(self, plan: StepPlan) -> None:
        """Note that a plan's tokens are computed, and publish the pages that became full."""
        for work in plan.work:
            seq = self._all.get(work.id)
            if seq is not None and seq.state is State.RUNNING:
                seq.num_computed = work.end
                self.pages.extend(seq.id, seq.tokens, seq.num_computed, seq.pages)

    def shrink(self, max_batch_tokens: int) -> None:
        """After an out-of-memory step: preempt everything, and make no larger steps any more."""
        self.limits = self.limits.at_most(max_batch_tokens)
        for seq in reversed(list(self._running)):
            self._preempt(seq)

    def idle_state(self) -> dict[str, int]:
        """What is held, by kind: all counts are 0 when no sequence lives. Raises AssertionError if a page is lost."""
        self.pages.check()
        held = {"sequences": len(self._all), "running": len(self._running), "waiting": len(self._queue)}
        return held | {"refusals": len(self.admission), "pages": self.pages.held}

    def _grow(self, seq: Sequence, length: int, preempted: list[str], chosen: list[tuple[Sequence, int]]) -> bool:
        """Give ``seq`` pages for ``length`` more tokens, preempting younger ones. False if it is itself preempted."""
        missing = self.pages.needed(seq.num_computed + length) - len(seq.pages)
        while missing > self.pages.available:
            victim = self._running[-1]
            self._preempt(victim)
            preempted.append(victim.id)
            chosen[:] = [c for c in chosen if c[0] is not victim]
            if victim is seq:
                return False
        seq.pages += [self.pages.allocate() for _ in range(missing)]
        return True

    def _start(self, seq: Sequence) -> bool:
        """Give a waiting sequence the pages of its known prefix and let it run; False if pages are short."""
        root = self._prefix_root(seq)
        # Scores need the logits of every position, which cached pages do not hold.
        hit = self.pages.match(root, seq.tokens) if seq.score_from is None else []
        if not self.pages.fits(self.pages.needed(min(len(seq.tokens) + 1, seq.limit)) - len(hit), hit):
            return False
        self._queue.remove(seq)
        self.pages.begin(seq.id, root, seq.tokens, hit)
        seq.pages, seq.num_computed, seq.state = list(hit), len(hit) * self.pages.page_size, State.RUNNING
        self._running.append(seq)
        return True

    def _preempt(self, seq: Sequence) -> None:
        self._stop(seq)
        seq.state, seq.num_computed = State.WAITING, 0
        seq.num_preempted += 1
        self.preemptions += 1
        self._queue.put_back(seq)

    def _stop(self, seq: Sequence) -> None:
        self._running.remove(seq)
        self.pages.end(seq.id, seq.pages)
        seq.pages = []
        self.admission.leave(seq)
