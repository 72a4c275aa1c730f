"""What runs in the next step: a pure machine over clock, pages and requests that knows no tensor.

No phases: a sequence has tokens and a count of those computed, and a step makes the counts catch up within a token
budget. Running sequences come first (each needs one token when it generates), then half-done prompts, then new
requests in the order of :mod:`.fairness`, as far as :mod:`.admission` lets them. Beside tenants with less to do, those
with more get the part of a step that :mod:`.contention` leaves them. When pages run out, the youngest running sequence
of the tenant that has most of them is preempted and computed again later.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping

from ...core.errors import Code, Error
from .admission import Adapters, AdmissionControl, check_capacity
from .contention import Contention
from .drafts import NgramDrafter
from .fairness import FairQueue
from .pages import PagePool
from .plan import StepLimits, StepPlan, Work
from .sequence import Sequence, State


class Scheduler:
    """Owns all live sequences and their pages.

    A sequence's adapters are acquired when it starts and released exactly once, when it stops running. Sequences of
    one ``prefix_root`` share pages; ``ready`` tells whether a waiting one may start at all. ``drafter`` gives drafts;
    None: there are none.
    """

    def __init__(
        self,
        pages: PagePool,
        limits: StepLimits,
        adapters: Adapters,
        prefix_root: Callable[[Sequence], bytes],
        ready: Callable[[Sequence], bool] = lambda seq: True,
        clock: Callable[[], float] = time.monotonic,
        drafter: NgramDrafter | None = None,
    ) -> None:
        self.pages, self.limits, self.preemptions = pages, limits, 0
        self.drafter = drafter
        self._configured = limits
        self._adapters, self._prefix_root = adapters, prefix_root
        self.admission = AdmissionControl(adapters, ready)
        self.contention = Contention(limits.tenant_slowdown, limits.max_batch_tokens, clock)
        self._all: dict[str, Sequence] = {}
        self._running: list[Sequence] = []  # oldest first
        self._queue = FairQueue()
        self._steps = 0
        self._competing = False  # whether tenants competed in the last step

    def add(self, seq: Sequence) -> None:
        """Queue a sequence. RESOURCE_EXHAUSTED when the queue is full or the cache could never hold it."""
        if seq.id in self._all:
            raise Error(Code.ALREADY_EXISTS, f"request id {seq.id!r} is in use")
        check_capacity(seq, self.pages, self.limits, self._queue)
        self._all[seq.id] = seq
        self._queue.add(seq)
        self.contention.seen(seq.tenant)

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
        if self.drafter is not None:
            self.drafter.forget(seq.id)
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

    @property
    def foresees(self) -> bool:
        """Whether the next step may be planned while tokens are pending.

        That is so unless it needs to know them: for a mask, or for drafts that are likely to pay.
        """
        pending = [seq for seq in self._running if seq.pending]
        if any(seq.grammar is not None for seq in pending):
            return False
        return self.drafter is None or self._competing or not self.drafter.worth_waiting(pending)

    def schedule(self) -> StepPlan:
        """Choose the next step and hand out the pages that it writes to.

        A sequence whose next token is pending is taken to go on, unless that is its last one. There are no drafts
        while tokens are pending.
        """
        budget = self.limits.max_batch_tokens
        self._steps += 1
        shares = self.contention.shares(
            self._queue.live,
            self._queue.served,
            running={seq.tenant for seq in self._running},
            decoding={seq.tenant for seq in self._running if seq.num_left == 1},
        )
        self._competing = bool(shares)
        ahead = any(seq.pending for seq in self._running)
        preempted: list[str] = []
        chosen: list[tuple[Sequence, int]] = []

        def take(seq: Sequence) -> None:
            nonlocal budget
            length = min(seq.num_left, budget, shares.get(seq.tenant, budget))
            if length > 0 and self._grow(seq, length, preempted, chosen):
                chosen.append((seq, length))
                budget -= length
                if seq.tenant in shares:
                    shares[seq.tenant] -= length

        # sorted: those that generate first, so that a long prompt never takes a token from a running answer; where a
        # tenant has a share only, its sequences take turns.
        for seq in sorted(self._running, key=lambda s: (s.last_step,) if s.tenant in shares else (s.num_left > 1,)):
            # None left: its next token waits for something other than the model.
            last = seq.pending and seq.length >= seq.limit
            if seq.state is State.RUNNING and seq.num_left and not last and len(chosen) < self.limits.max_running:
                take(seq)
        started: list[str] = []
        blocked: set[str] = set()
        waiting = self._admissible(shares, preempted, blocked)
        admitted = self.admission.admit(waiting, lambda seq: self._start(seq, preempted, chosen, blocked))
        while budget > 0 and len(chosen) < self.limits.max_running and (new := next(admitted, None)) is not None:
            if not new.admitted:
                new.num_cached, new.admitted = new.num_computed, True
                started.append(new.id)
            take(new)
        # Where tenants compete, the time that drafts take is not one tenant's to give.
        drafts = {} if shares or ahead else self._draft(chosen, budget)
        # Now that all are admitted: a swap for one of them may have moved the slots of another.
        work = [
            Work.of(seq, length, self._adapters.entries(seq.stack), drafts.get(seq.id, ()), self.pages.copy(seq.id))
            for seq, length in chosen
        ]
        computed = [(seq, part.rows) for (seq, _), part in zip(chosen, work, strict=True)]
        for seq, rows in computed:
            seq.last_step = self._steps
            self._queue.charge(seq, rows)
        mix = self.contention.planned([(seq.tenant, rows) for seq, rows in computed])
        work.sort(key=lambda w: (w.length > 1, w.rows > 1, not w.stack))
        return StepPlan(tuple(work), tuple(preempted), tuple(started), self._adapters.drain_swaps(), mix)

    def advance(self, plan: StepPlan) -> None:
        """Note that a plan's tokens are computed, and publish the blocks that became full. None of them is pending."""
        for work in plan.work:
            seq = self._all.get(work.id)
            if seq is not None and seq.state is State.RUNNING:
                seq.num_computed = work.end
                if seq.pooling is None:  # nobody goes on from a text that is embedded
                    self.pages.extend(seq.id, seq.tokens, seq.num_computed, seq.pages)

    def verified(self, work: Work, accepted: int) -> None:
        """Note that so many tokens of a work's draft were right. Pages that only the others need are given back."""
        if self.drafter is None or not work.draft:
            return
        self.drafter.verified(work.id, len(work.draft), accepted)
        seq = self._all.get(work.id)
        if seq is not None and seq.state is State.RUNNING:
            needed = self.pages.needed(seq.num_computed + 1)
            self.pages.release(seq.pages[needed:])
            del seq.pages[needed:]

    def shrink(self, max_batch_tokens: int) -> None:
        """After an out-of-memory step: preempt everything, and make no larger steps until :meth:`widen`."""
        self.limits = self.limits.at_most(max_batch_tokens)
        for seq in reversed(list(self._running)):
            self._preempt(seq, [], [])

    def widen(self) -> bool:
        """Double the limits that :meth:`shrink` lowered, up to the configured ones; False if they are that already."""
        if self.limits == self._configured:
            return False
        self.limits = self._configured.at_most(2 * self.limits.max_batch_tokens)
        return True

    def idle_state(self) -> dict[str, int]:
        """What is held, by kind: all counts are 0 when no sequence lives. Raises AssertionError if a page is lost."""
        self.pages.check()
        held = {"sequences": len(self._all), "running": len(self._running), "waiting": len(self._queue)}
        held["drafts"] = 0 if self.drafter is None else len(self.drafter)
        return held | {"refusals": len(self.admission), "pages": self.pages.held}

    def _grow(self, seq: Sequence, length: int, preempted: list[str], chosen: list[tuple[Sequence, int]]) -> bool:
        """Give ``seq`` pages for ``length`` more tokens, preempting younger ones. False if it is itself preempted."""
        missing = self.pages.needed(seq.num_computed + length) - len(seq.pages)
        while missing > self.pages.available:
            victim = self._victim(above=0) or self._running[-1]
            self._preempt(victim, preempted, chosen)
            if victim is seq:
                return False
        seq.pages += [self.pages.allocate() for _ in range(missing)]
        return True

    def _draft(self, chosen: list[tuple[Sequence, int]], budget: int) -> dict[str, tuple[int, ...]]:
        """Drafts for those that decode, within the step's ``budget`` and the pages that nobody holds."""
        if self.drafter is None or budget < 1:
            return {}
        decoding = [seq for seq, length in chosen if length == seq.num_left == 1 and seq.generates]
        rows = self.limits.max_batch_tokens - budget
        most = {seq.id: seq.sampling.max_tokens - seq.num_output - 1 for seq in decoding}
        drafts = self.drafter.draft(decoding, rows, most)
        for seq in decoding:
            draft = drafts.get(seq.id, ())[:budget]
            budget -= len(draft)
            end = seq.num_computed + 1 + len(draft)
            missing = max(0, self.pages.needed(end) - len(seq.pages))
            lent = min(missing, self.pages.available)
            seq.pages += [self.pages.allocate() for _ in range(lent)]
            fitting = len(seq.pages) * self.pages.page_size - seq.num_computed - 1
            drafts[seq.id] = draft[:fitting]
        return drafts

    def _admissible(self, shares: Mapping[str, int], preempted: list[str], blocked: set[str]) -> Iterator[Sequence]:
        """Waiting sequences whose tenants have room in the step and are not ``blocked``, in their order.

        Once something was preempted, or as many run as may, that is only tenants with less than their even share.
        """
        tenants, most = len(self._queue.live), self.limits.max_running
        for seq in self._queue:
            if seq.tenant in blocked or seq.id in preempted or seq.pending or shares.get(seq.tenant, 1) <= 0:
                continue
            running = sum(s.tenant == seq.tenant for s in self._running)
            if (not preempted and len(self._running) < most) or (tenants > 1 and running * tenants < most):
                yield seq

    def _held(self, tenant: str) -> int:
        """Pages of a tenant's running sequences."""
        return sum(len(seq.pages) for seq in self._running if seq.tenant == tenant)

    def _victim(self, above: int) -> Sequence | None:
        """The youngest sequence of the tenant with most pages, more than ``above``, among those that run several."""
        running = Counter(seq.tenant for seq in self._running)
        held = {tenant: self._held(tenant) for tenant, count in running.items() if count > 1}
        most = max(held, key=lambda tenant: held[tenant], default="")
        if held.get(most, 0) <= above:
            return None
        return next(seq for seq in reversed(self._running) if seq.tenant == most)

    def _start(
        self, seq: Sequence, preempted: list[str], chosen: list[tuple[Sequence, int]], blocked: set[str]
    ) -> bool:
        """Give a waiting sequence the pages of its known prefix and let it run; False if pages are short.

        A tenant that stays within its even share of the pages gets them from one that has more. Of those that must
        wait for pages, one whose tenant has less than its share is overtaken by nobody: it might wait for ever.
        """
        root = self._prefix_root(seq)
        prefix = self.pages.match(root, seq.tokens[: seq.reusable])
        needed = self.pages.needed(min(len(seq.tokens) + 1, seq.limit))
        if not self.pages.fits(needed - len(prefix.pages), prefix):
            prefix = prefix.whole  # to copy from a page is to hold one more
        share = self.pages.pages // max(1, len(self._queue.live))
        while not self.pages.fits(needed - len(prefix.pages), prefix):
            held, victim = self._held(seq.tenant), self._victim(above=share)
            if victim is None or held + needed > share:
                blocked.update([seq.tenant] if held >= share else self._queue.live)
                return False
            self._preempt(victim, preempted, chosen)
        self._queue.remove(seq)
        seq.pages = self.pages.begin(seq.id, root, seq.tokens, prefix)
        seq.num_computed, seq.state = len(prefix.pages) * self.pages.page_size + prefix.rest, State.RUNNING
        self._running.append(seq)
        return True

    def _preempt(self, seq: Sequence, preempted: list[str], chosen: list[tuple[Sequence, int]]) -> None:
        """Stop a sequence, to be computed again later, and take it out of the step."""
        self._stop(seq)
        preempted.append(seq.id)
        chosen[:] = [c for c in chosen if c[0] is not seq]
        seq.state, seq.num_computed = State.WAITING, 0
        seq.num_preempted += 1
        self.preemptions += 1
        self._queue.put_back(seq)

    def _stop(self, seq: Sequence) -> None:
        self._running.remove(seq)
        self.pages.end(seq.id, seq.pages)
        seq.pages = []
        self.admission.leave(seq)
