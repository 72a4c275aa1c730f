"""The scheduler turned by hand over a fake model: what it computes follows from all that it could see.

A token's hidden value mixes its id, position, stack (digests and weights) and tenant with its predecessor's, and is
kept in the fake KV page the plan names; a chosen token follows from the hidden values of the whole context, read back
from the pages. So a wrong page, a stale prefix, a skipped token or another's adapter changes the output.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from random import Random

import pytest

from loramux_server.core.background import Ended, Report
from loramux_server.core.errors import Code, Error
from loramux_server.core.jobs import TrainCommand, TrainSpec
from loramux_server.core.types import AdapterVersion, SamplingParams, Stack, StackEntry
from loramux_server.engine.scheduling.drafts import NgramDrafter
from loramux_server.engine.scheduling.pages import BLOCK, PagePool, prefix_root
from loramux_server.engine.scheduling.plan import Admission, StepLimits, StepPlan
from loramux_server.engine.scheduling.scheduler import Scheduler
from loramux_server.engine.scheduling.sequence import Sequence, State
from loramux_server.engine.training_share import TrainingShare
from loramux_server.lora.slots import Entries, SlotTable, Swap
from tests.rows import NO_ROWS

VOCAB = 50


def sequence(
    id: str,
    prompt: int | list[int] = 4,
    max_tokens: int = 4,
    *,
    stack: Stack = Stack(),  # noqa: B008
    tenant: str = "t",
    deadline: float | None = None,
    score_from: int | None = None,
) -> Sequence:
    tokens = list(range(prompt)) if isinstance(prompt, int) else list(prompt)
    sampling = SamplingParams(max_tokens=max_tokens)
    return Sequence(id, tokens, len(tokens), stack, sampling, 0, tenant, deadline, score_from)


def stack_of(*entries: tuple[str, int, float]) -> Stack:
    """A stack of (digest, rank, weight)."""
    return Stack(tuple(StackEntry(AdapterVersion(d, 1, d, rank), weight) for d, rank, weight in entries))


def hidden(seq_key: int, token: int, position: int, before: int) -> int:
    return hash((seq_key, token, position, before))


def solo(seq_key: int, prompt: list[int], max_tokens: int) -> list[int]:
    """What a request gives when it runs alone."""
    tokens = list(prompt)
    seen: list[int] = []
    for _ in range(max_tokens):
        for position in range(len(seen), len(tokens)):
            seen.append(hidden(seq_key, tokens[position], position, seen[-1] if seen else 0))
        tokens.append(hash(tuple(seen)) % VOCAB)
    return tokens[len(prompt) :]


def key_of(seq: Sequence) -> int:
    return hash((seq.tenant, seq.stack.key))


class FakeBank:
    """Adapters that are loaded when told to, in a bank of ``rows`` rank rows. ``device`` is what these hold."""

    def __init__(self, rows: int = 1 << 30) -> None:
        self.slots = SlotTable(rows)
        self.loaded: dict[str, int] = {}  # host memory: digest -> rank
        self.wanted: set[str] = set()
        self.asked = 0  # how often acquire was
        self.device: dict[int, str] = {}  # rank row -> digest
        self._swaps: list[Swap] = []

    def load(self, scheduler: Scheduler, *digests: str, rank: int = 4) -> None:
        """Put adapters in host memory, and tell."""
        for digest in digests:
            self.loaded[digest] = rank
            scheduler.admission.adapter_loaded(digest)

    def acquire(self, seq: Sequence) -> Admission:
        self.asked += 1
        mine = {e.adapter.digest: e.adapter.rank for e in seq.stack.entries}
        self.wanted |= mine.keys() - self.loaded.keys()
        if not mine.keys() <= self.loaded.keys():
            return Admission.LOADING
        if not self.slots.fits(mine):
            return Admission.FULL
        for digest in sorted(mine, key=lambda d: self.slots.get(d) is None):
            if self.slots.get(digest) is None:
                swap = self.slots.place(digest, mine[digest])
                assert swap is not None
                self._swaps.append(swap)
            self.slots.acquire(digest)
        return Admission.READY

    def release(self, stack: Stack) -> None:
        for entry in stack.entries:
            self.slots.release(entry.adapter.digest)

    def entries(self, stack: Stack) -> Entries:
        return tuple((self.slots.slot(e.adapter.digest), e.weight) for e in stack.entries if e.weight)

    def drain_swaps(self) -> tuple[Swap, ...]:
        swaps, self._swaps = tuple(self._swaps), []
        return swaps

    def apply(self, swaps: Iterable[Swap], failing: Collection[str] = ()) -> set[str]:
        """Carry swaps out on the pretended device; gives those of ``failing`` that were to be loaded."""
        failed: set[str] = set()
        for swap in swaps:
            for move in swap.moves:
                rows = [self.device.get(row) for row in range(move.lo, move.hi)]
                self.device.update({move.to + i: digest for i, digest in enumerate(rows) if digest is not None})
            if swap.slot.digest in failing:
                self.slots.lose(swap.slot.digest)
                failed.add(swap.slot.digest)
            else:
                self.device.update(dict.fromkeys(range(swap.slot.lo, swap.slot.hi), swap.slot.digest))
        return failed


def make_scheduler(
    pages: int = 64,
    size: int = 4,
    *,
    bank: FakeBank | None = None,
    salt: Callable[[str], bytes] = str.encode,
    clock: Callable[[], float] | None = None,
    tenant_slowdown: float = 1.2,
    drafter: NgramDrafter | None = None,
    block: int = BLOCK,
    **limits: int,
) -> Scheduler:
    bank = bank or FakeBank()
    pool = PagePool(pages, size, block)
    seconds = itertools.count()  # who does not run is away at once
    root = lambda seq: prefix_root("base", salt(seq.tenant), seq.stack)  # noqa: E731
    return Scheduler(
        pool,
        StepLimits(**limits, tenant_slowdown=tenant_slowdown),
        bank,
        root,
        clock=clock or (lambda: float(next(seconds))),
        drafter=drafter,
    )


class Guesser(NgramDrafter):
    """Knows what requests give alone, and drafts it with a fault here and there."""

    def __init__(self, draw: Random) -> None:
        super().__init__(row_cost=0.1)
        self._draw = draw

    def draft(self, seqs: Collection[Sequence], rows: int, most: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
        drafts = {}
        for seq in seqs:
            super().draft([seq], rows, most)
            right = solo(key_of(seq), seq.tokens[: seq.prompt_length], seq.sampling.max_tokens)[seq.num_output :]
            length = self._draw.randint(0, most[seq.id])
            drafts[seq.id] = tuple(t if self._draw.random() < 0.8 else VOCAB for t in right[:length])
        return drafts


@dataclass
class Machine:
    """Runs plans of a scheduler on the fake model and checks each plan before it does."""

    scheduler: Scheduler
    bank: FakeBank
    kv: dict[tuple[int, int], int] = field(default_factory=dict)
    ended: dict[str, str] = field(default_factory=dict)
    outputs: dict[str, list[int]] = field(default_factory=dict)
    steps: int = 0
    copies: int = 0
    """Pages that began as a copy of another's head."""

    def step(self, failing: Collection[str] = ()) -> StepPlan:
        """Schedule, swap, compute, advance, choose. The device finds no memory for the adapters in ``failing``."""
        plan = self.swap(self.scheduler.schedule(), failing)
        self.check(plan)
        self.compute(plan)
        return plan

    def swap(self, plan: StepPlan, failing: Collection[str] = ()) -> StepPlan:
        """Carry the swaps of a plan out and end whoever needs what failed."""
        failed = self.bank.apply(plan.swaps, failing)
        ended = [s for s in self.scheduler.sequences if any(e.adapter.digest in failed for e in s.stack.entries)]
        for seq in ended:
            self.end(seq, "swap")
        return plan.without({seq.id for seq in ended})

    def compute(self, plan: StepPlan) -> None:
        size = self.scheduler.pages.page_size
        chosen: dict[str, list[int]] = {}  # by row of a work that samples
        for work in plan.work:
            if work.copy is not None:
                self.copies += 1
                for place in range(work.copy.tokens):
                    self.kv[work.copy.target, place] = self.kv[work.copy.source, place]
        for work in plan.work:
            seq = self.scheduler.get(work.id)
            assert seq is not None
            places = [(work.pages[p // size], p % size) for p in range(work.positions.stop)]
            for position, token in zip(work.positions, work.tokens + work.draft, strict=True):
                before = self.kv[places[position - 1]] if position else 0
                self.kv[places[position]] = hidden(key_of(seq), token, position, before)
            ends = range(work.end, work.positions.stop + 1)
            chosen[work.id] = [hash(tuple(self.kv[p] for p in places[:end])) % VOCAB for end in ends]
        self.scheduler.advance(plan)
        self.scheduler.contention.measured(plan.mix, 1 + 0.1 * plan.tokens)
        self.steps += bool(plan.work)
        for work in plan.work:
            seq = self.scheduler.get(work.id)
            assert seq is not None
            if work.samples:
                tokens = chosen[work.id]
                right = 0
                while right < len(work.draft) and tokens[right] == work.draft[right]:
                    right += 1
                seq.tokens += tokens[: right + 1]
                seq.num_computed += right
                if seq.num_output == seq.sampling.max_tokens:
                    self.end(seq, "done")
                self.scheduler.verified(work, right)

    def check(self, plan: StepPlan) -> None:
        """What must hold of every plan."""
        scheduler, pool = self.scheduler, self.scheduler.pages
        pool.check()
        assert plan.tokens <= scheduler.limits.max_batch_tokens
        assert len(plan.work) <= scheduler.limits.max_running
        by_tenant = Counter(s.tenant for s in scheduler.sequences if s.state is State.RUNNING)
        assert all(count <= scheduler.limits.max_running for count in by_tenant.values())
        ids = [w.id for w in plan.work]
        assert len(set(ids)) == len(ids), "a sequence is twice in a step"
        assert not set(ids) & set(plan.preempted)
        kinds = [(w.length > 1, w.rows > 1, not w.stack) for w in plan.work]
        assert kinds == sorted(kinds), "single rows first, then drafts, then chunks; adapted before bare"
        written: list[int] = []
        for work in plan.work:
            seq = scheduler.get(work.id)
            assert seq is not None
            assert seq.state is State.RUNNING
            assert work.length > 0
            assert work.start == seq.num_computed
            assert list(work.tokens) == seq.tokens[work.start : work.end]
            assert work.samples == (work.end == len(seq.tokens))
            assert len(work.pages) == pool.needed(work.positions.stop)
            assert not work.draft or (work.samples and work.length == 1)
            assert len(seq.tokens) + len(work.draft) < seq.limit or not work.draft
            wanted = [(e.adapter.digest, e.weight) for e in seq.stack.entries if e.weight]
            assert [(slot.digest, weight) for slot, weight in work.stack] == wanted
            for slot, _ in work.stack:
                held = {self.bank.device.get(row) for row in range(slot.lo, slot.hi)}
                assert held == {slot.digest}, "the device holds something else where an adapter should be"
            written += work.pages[work.start // pool.page_size :]
            for position in work.positions:
                place = position % pool.page_size
                assert place >= pool.indexed(work.pages[position // pool.page_size]), "a block is written that is known"
        assert len(set(written)) == len(written), "two sequences write to one page"
        copies = [w.copy for w in plan.work if w.copy is not None]
        assert not {c.source for c in copies} & {c.target for c in copies}
        sources = Counter(c.source for c in copies)
        assert all(pool.refcount(p) - sources[p] == 1 for p in written), "a page is written that others read"
        running = [s for s in scheduler.sequences if s.state is State.RUNNING]
        assert len(running) == scheduler.num_running
        expected: dict[str, int] = {}
        for seq in running:
            for entry in seq.stack.entries:
                expected[entry.adapter.digest] = expected.get(entry.adapter.digest, 0) + 1
        counted = {d: count for d in self.bank.slots.digests if (count := self.bank.slots.refcount(d))}
        assert counted == expected, "refcounts are not those of the running sequences"

    def end(self, seq: Sequence, how: str) -> None:
        assert seq.id not in self.ended, "a request ended twice"
        self.ended[seq.id] = how
        self.outputs[seq.id] = seq.tokens[seq.prompt_length :]
        self.scheduler.finish(seq)

    def check_idle(self) -> None:
        assert not any(self.scheduler.idle_state().values())
        assert not self.scheduler.sequences
        assert self.bank.slots.in_use == 0
        assert self.scheduler.pages.held == 0


@dataclass
class FakeTraining:
    """Jobs of so many pieces, by turns. A piece takes the time that it may, or three steps' when nobody waits."""

    now: float = 0.0  # the clock of the whole simulation
    left: dict[str, int] = field(default_factory=dict)
    suspended: tuple[str, ...] = ()
    ended: list[str] = field(default_factory=list)

    device_seconds: float | None = None

    @property
    def jobs(self) -> tuple[str, ...]:
        return tuple(self.left)

    @property
    def nbytes(self) -> int:
        return len(self.left)

    def add(self, command: TrainCommand, report: Report) -> None:
        self.left[command.job_id] = command.checkpoint_every

    def remove(self, job_id: str) -> None:
        if self.left.pop(job_id, None) is not None:
            self.ended.append(job_id)

    def advance(self, seconds: float | None) -> list[Ended]:
        job, pieces = next(iter(self.left.items()))
        self.now += 3.0 if seconds is None else seconds
        del self.left[job]
        if pieces > 1:
            self.left[job] = pieces - 1
        return [(job, None)] if pieces == 1 else []


ADAPTERS = {f"d{i}": 2 + 3 * i for i in range(6)}
BROKEN = "d5"
"""The digest whose files cannot be read."""


def simulate(seed: int, steps: int = 60) -> Machine:
    """A random life: arrivals, cancels, deadlines, preemption, out of memory, adapters late, broken or evicted.

    Jobs train beside it, and take time from it.
    """
    draw = Random(seed)
    bank = FakeBank(draw.choice([17, 25, 1 << 20]))
    size, block = draw.choice([(1, 1), (2, 2), (4, 4), (4, 2), (8, 2)])
    pages = draw.randint(24 // size, 80 // size)
    training = FakeTraining()
    scheduler = make_scheduler(
        pages,
        size,
        block=block,
        bank=bank,
        clock=lambda: training.now,
        tenant_slowdown=draw.choice([0.0, 1.2, 3.0]),
        max_batch_tokens=draw.choice([1, 3, 8, 32]),
        max_running=draw.choice([1, 3, 16]),
        max_queue=draw.choice([3, 1000]),
        drafter=draw.choice([None, Guesser(draw)]),
    )
    machine = Machine(scheduler, bank)
    asked: dict[str, Sequence] = {}
    prompts = [[draw.randrange(3) for _ in range(draw.randint(1, 14))] for _ in range(4)]
    share = TrainingShare(
        training, draw.choice([0.0, 0.3, 0.9]), 1.5, lambda job, _: training.ended.append(job), lambda: training.now
    )
    jobs: list[str] = []
    step = 0
    while step < steps or scheduler.sequences:
        assert step < 40 * steps, f"starved: {[s.id for s in scheduler.sequences]}"
        if step < steps:
            for _ in range(draw.choice([0, 0, 1, 1, 3])):
                _arrive(machine, asked, draw, prompts, training.now)
            if draw.random() < 0.15 and scheduler.sequences:
                machine.end(draw.choice(scheduler.sequences), "cancelled")
            if draw.random() < 0.1:
                jobs.append(f"j{step}")
                share.add(
                    TrainCommand(jobs[-1], TrainSpec(), NO_ROWS, checkpoint_every=draw.randint(1, 9)), lambda _: None
                )
            if draw.random() < 0.03 and jobs:
                share.remove(draw.choice(jobs))
        for digest in sorted(bank.wanted):
            if step >= steps or draw.random() < 0.3:
                _load(machine, digest)
        for seq in scheduler.expired(training.now):
            machine.end(seq, "expired")
        if draw.random() < 0.03:
            plan = machine.swap(scheduler.schedule())
            machine.check(plan)
            if plan.tokens > 1:  # the step ran out of memory, perhaps after it wrote rubbish to its pages
                for work in plan.work:
                    for position in work.positions:
                        machine.kv[work.pages[position // size], position % size] = -1
                scheduler.shrink(max(1, plan.tokens // 2))
                scheduler.pages.check()
            else:
                machine.compute(plan)
        else:
            plan = machine.step(failing=ADAPTERS if draw.random() < 0.05 else ())
        training.now += 1.0
        share.turn(serving=bool(plan.work))
        step += 1
    while share.busy:
        share.turn(serving=False)
    assert sorted(training.ended) == sorted(jobs), "a job is lost, or ended twice"
    machine.check_idle()
    assert machine.ended.keys() == asked.keys(), "a request is lost"
    for id, seq in asked.items():
        expected = solo(key_of(seq), seq.tokens[: seq.prompt_length], seq.sampling.max_tokens)
        got = machine.outputs[id]
        assert got == expected[: len(got)], f"{id} differs from its run alone"
        assert machine.ended[id] != "done" or got == expected
    return machine


def _arrive(machine: Machine, asked: dict[str, Sequence], draw: Random, prompts: list[list[int]], now: float) -> None:
    digests = draw.sample(sorted(ADAPTERS), draw.choice([0, 0, 1, 1, 2]))
    entries = [(d, ADAPTERS[d], draw.choice([1.0, 1.0, 0.5])) for d in digests]
    if sum(rank for _, rank, _ in entries) > machine.bank.slots.rows:
        return  # refused before the scheduler is asked
    seq = sequence(
        f"r{len(asked)}",
        draw.choice(prompts)[: draw.randint(1, 14)] + [draw.randrange(3) for _ in range(draw.randint(0, 3))],
        draw.randint(1, 6),
        stack=stack_of(*entries),
        tenant=draw.choice("abc"),
        deadline=now + draw.randint(1, 40) if draw.random() < 0.2 else None,
    )
    room = machine.scheduler.pages.pages * machine.scheduler.pages.page_size
    waiting = Counter(s.tenant for s in machine.scheduler.sequences if s.state is State.WAITING)
    tenants = len({s.tenant for s in machine.scheduler.sequences} | {seq.tenant})
    most = machine.scheduler.limits.max_queue
    if (waiting.total() >= most and waiting[seq.tenant] * tenants >= most) or seq.limit > room:
        with pytest.raises(Error) as refused:
            machine.scheduler.add(seq)
        assert refused.value.code is Code.RESOURCE_EXHAUSTED
        assert machine.scheduler.get(seq.id) is None
    else:
        machine.scheduler.add(seq)
        asked[seq.id] = seq


def _load(machine: Machine, digest: str) -> None:
    machine.bank.wanted.discard(digest)
    if digest == BROKEN:
        for seq in machine.scheduler.sequences:
            if any(e.adapter.digest == digest for e in seq.stack.entries):
                machine.end(seq, "adapter")
    else:
        machine.bank.load(machine.scheduler, digest, rank=ADAPTERS[digest])
