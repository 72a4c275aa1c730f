"""Requests for far more adapters than there is room for: scheduler, bank, host cache and reads, without a model."""

from __future__ import annotations

import queue
from pathlib import Path
from random import Random
from types import SimpleNamespace

import pytest
import torch

from loramux_server.core.types import AdapterVersion, SamplingParams, Stack, StackEntry
from loramux_server.engine.residency import cache as cache_module
from loramux_server.engine.residency.cache import HostCache
from loramux_server.engine.residency.load_quota import LoadQuota
from loramux_server.engine.residency.manager import ResidencyManager
from loramux_server.engine.scheduling.admission import PATIENCE
from loramux_server.engine.scheduling.pages import PagePool, prefix_root
from loramux_server.engine.scheduling.plan import Admission, StepLimits
from loramux_server.engine.scheduling.scheduler import Scheduler
from loramux_server.engine.scheduling.sequence import Sequence
from loramux_server.lora.bank import AdapterBank, HostAdapter, LoraPair, PackedAdapter
from loramux_server.lora.slots import Swap
from loramux_server.store.blobs.reader import BlobReader

RANK, WIDTH = 4, 4
GROUP = SimpleNamespace(index=0, names=("m.0.q_proj",), in_features=WIDTH, out_features=(WIDTH,))
BYTES = 2 * RANK * WIDTH * 4
TOKENS = 6


def stack_of(*digests: str) -> Stack:
    return Stack(tuple(StackEntry(AdapterVersion(d, 1, d, RANK)) for d in digests))


class Counting(ResidencyManager):
    """Counts how often it is asked for a stack."""

    asked = 0

    def acquire(self, seq: Sequence) -> Admission:
        self.asked += 1
        return super().acquire(seq)


class AdapterTraffic:
    """Turns steps as the loop does, with room for so many adapters on the device and on the host."""

    def __init__(self, device: int, host: int, *, running: int = 16, rate: float = 0.0, prompt: bool = True) -> None:
        self.prompt = prompt  # reads end within the turn, whatever else this machine does
        self.bank = AdapterBank([GROUP], device * RANK, torch.device("cpu"), torch.float32)  # type: ignore[list-item]
        self.ended_reads: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.cache = HostCache(
            BlobReader(Path()), {}, "base", host * BYTES, torch.float32, self.bank.pack, self.ended_reads.put
        )
        self.quota = LoadQuota(rate)
        self.residency = Counting(self.bank, self.cache, self.quota)
        self.scheduler = Scheduler(
            PagePool(4096, 4),
            StepLimits(max_batch_tokens=64, max_running=running),
            self.residency,
            lambda seq: prefix_root("base", seq.tenant.encode(), seq.stack),
        )
        self.ended: list[str] = []
        self.order: list[str] = []

    def add(self, id: str, *digests: str, tenant: str = "t") -> Sequence:
        sampling = SamplingParams(max_tokens=TOKENS)
        seq = Sequence(id, [hash(id) % 99, 2, 3], 3, stack_of(*digests), sampling, 0, tenant)
        self.scheduler.add(seq)
        self.residency.expect(seq)
        return seq

    def leave(self, seq: Sequence) -> None:
        self.scheduler.finish(seq)
        self.residency.forget(seq)
        self.ended.append(seq.id)

    def collect(self, *, wait: bool) -> None:
        digest = self.ended_reads.get(timeout=20) if wait else self.ended_reads.get_nowait()
        error, _ = self.residency.collect(digest)
        assert error is None
        self.scheduler.admission.adapter_loaded(digest)

    def turn(self) -> None:
        try:
            while True:
                self.collect(wait=False)
        except queue.Empty:
            pass
        plan = self.scheduler.schedule()
        assert not self.residency.apply(plan.swaps)
        self.residency.read_on()
        while self.prompt and self.cache._loading:
            self.collect(wait=True)
            self.residency.read_on()
        self.order += plan.started
        self.scheduler.advance(plan)
        for work in plan.work:
            seq = self.scheduler.get(work.id)
            assert seq is not None
            assert all((self.bank.a[0][slot.lo : slot.hi] == 1).all() for slot, _ in work.stack)
            assert [slot.digest for slot, _ in work.stack] == [e.adapter.digest for e in seq.stack.entries]
            if work.samples:
                seq.tokens.append(7)
                if seq.num_output == TOKENS:
                    self.leave(seq)
        if not (plan.work or self.prompt):
            self.collect(wait=True)  # nothing else can bring it on: a stall shows as a timeout

    def run(self, turns: int = 20_000) -> None:
        for _ in range(turns):
            if not self.scheduler.sequences:
                return
            self.turn()
        raise AssertionError(f"never ended: {[s.id for s in self.scheduler.sequences]}")

    def check_empty(self) -> None:
        assert not any(self.residency.idle_state().values())
        assert self.cache.nbytes <= max(self.cache.budget, BYTES)
        assert not any(self.scheduler.idle_state().values())


@pytest.fixture(autouse=True)
def folders(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every adapter is there, and small."""

    def read(*_: object, **__: object) -> dict[str, LoraPair]:
        return {"m.0.q_proj": LoraPair(torch.ones(RANK, WIDTH), torch.ones(WIDTH, RANK), 1.0)}

    monkeypatch.setattr(cache_module, "read_content", read)


@pytest.mark.parametrize("seed", range(4))
def test_each_adapter_is_read_about_once_for_all_who_wait_for_it(seed: int) -> None:
    """200 requests over 60 adapters, room for 4 on the device and 8 on the host."""
    draw = Random(seed)
    engine = AdapterTraffic(device=4, host=8, prompt=seed % 2 == 0)
    for i in range(200):
        engine.add(f"r{i}", f"d{draw.randrange(60)}")
    engine.run()
    used = 60
    assert len(engine.ended) == 200
    assert engine.cache.loads <= 1.2 * used
    engine.check_empty()


def test_what_waits_is_asked_about_only_when_something_changed() -> None:
    """A long answer runs in the only slot: those who wait for room cost nothing, step after step."""
    engine = AdapterTraffic(device=1, host=40)
    engine.add("first", "d0")
    engine.turn()
    while "first" not in engine.order:
        engine.turn()
    for i in range(1, 31):
        engine.add(f"r{i}", f"d{i}")
    while engine.cache.loads < 31:
        engine.turn()
        first = engine.scheduler.get("first")
        assert first is not None
        first.tokens[3:] = first.tokens[3:5]  # it never ends
        first.num_computed = min(first.num_computed, len(first.tokens) - 1)
    engine.collect(wait=False) if not engine.ended_reads.empty() else None
    engine.scheduler.schedule()
    asked = engine.residency.asked
    for _ in range(10):
        assert not engine.scheduler.schedule().started
    assert engine.residency.asked == asked


def test_popular_adapters_do_not_keep_others_out() -> None:
    """Requests for what is resident never stop, for as many adapters as the host has room for; others get a turn."""
    engine = AdapterTraffic(device=2, host=2, running=8)
    came: dict[str, int] = {}  # requests that had started when it came
    for step in range(400):
        for digest in ("hot0", "hot1"):
            if engine.scheduler.num_waiting < 30:
                engine.add(f"{digest}-{step}", digest, tenant="hot")
        if step % 40 == 20:
            came[f"cold{step}"] = len(engine.order)
            engine.add(f"cold{step}", f"cold{step}", tenant="cold")
        engine.turn()
    overtaken = [engine.order.index(id) - before for id, before in came.items() if id in engine.order]
    assert len(overtaken) >= len(came) - 1  # the last has just come
    assert max(overtaken) <= 3 * PATIENCE
    engine.run()
    engine.check_empty()


@pytest.mark.parametrize("host", [0, 1, 2, 3])
def test_stacks_larger_than_the_hosts_room_are_served(host: int) -> None:
    """No two requests may hold half of what the other needs."""
    draw = Random(host)
    engine = AdapterTraffic(device=4, host=host)
    for i in range(40):
        engine.add(f"r{i}", *draw.sample([f"d{j}" for j in range(9)], draw.randint(1, 4)))
    engine.run()
    engine.check_empty()


def test_requests_that_leave_let_others_have_their_place() -> None:
    for seed in range(6):
        draw = Random(seed)
        engine = AdapterTraffic(device=3, host=2, running=draw.choice([1, 8]), prompt=seed % 2 == 0)
        for i in range(120):
            engine.add(f"r{i}", *draw.sample([f"d{j}" for j in range(20)], draw.randint(0, 2)))
            if draw.random() < 0.5:
                engine.turn()
            if draw.random() < 0.4 and engine.scheduler.sequences:
                engine.leave(draw.choice(engine.scheduler.sequences))
            if draw.random() < 0.05 and engine.scheduler.num_running:
                engine.scheduler.shrink(64)  # all are set back, and their adapters may be pushed out
        engine.run()
        engine.check_empty()


def test_who_was_set_back_does_not_wait_for_anothers_quota() -> None:
    """Its adapter left memory meanwhile, and another tenant may not have it read yet."""
    engine = AdapterTraffic(device=1, host=0, rate=0.001)
    mine = engine.add("mine", "x", tenant="a")
    while mine.num_output < 2:
        engine.turn()
    engine.scheduler.shrink(64)
    engine.cache.drop("x")
    assert engine.bank.drop("x")
    assert engine.quota.take("b")
    other = engine.add("other", "x", tenant="b")  # has no load left for minutes
    for _ in range(20):
        engine.turn()
        if mine.id in engine.ended:
            break
    assert mine.id in engine.ended
    engine.leave(other) if other.id not in engine.ended else None
    engine.check_empty()


def test_bank_and_host_cache_hold_each_adapter_once() -> None:
    """On a processor: twelve adapters fit where four and eight do, so that each is read once."""
    engine = AdapterTraffic(device=4, host=8)
    for i in range(60):
        engine.add(f"r{i}", f"d{i % 12}")
        engine.run()
        assert not {*engine.bank.digests} & {*engine.cache.digests}
    assert engine.cache.loads == 12
    assert (len(engine.bank.digests), len(engine.cache.digests)) == (4, 8)
    engine.check_empty()


def test_what_leaves_a_bank_in_host_memory_is_what_was_packed() -> None:
    groups = [
        SimpleNamespace(index=0, names=("q", "k"), in_features=6, out_features=(6, 2)),
        SimpleNamespace(index=1, names=("o",), in_features=4, out_features=(6,)),
    ]
    bank = AdapterBank(groups, 7, torch.device("cpu"), torch.float32)  # type: ignore[arg-type]
    sides = {"q": (6, 6), "k": (6, 2), "o": (4, 6)}
    kinds = {"first": (3, "qko"), "narrow": (2, "o"), "part": (2, "k")}
    adapters = {
        digest: HostAdapter(
            digest,
            {n: LoraPair(torch.randn(rank, sides[n][0]), torch.randn(sides[n][1], rank), 0.5) for n in names},
        )
        for digest, (rank, names) in kinds.items()
    }
    for adapter in adapters.values():
        bank.put(adapter)
    for digest, adapter in adapters.items():
        packed, found = bank.pack(adapter), bank.unpack(bank.slot(digest))
        assert (found.rank, found.scaling, found.groups) == (packed.rank, packed.scaling, packed.groups)
        assert torch.equal(found.values, packed.values)


def test_an_adapter_that_never_got_into_its_slot_is_not_kept_from_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two loads of one step need the same slot, and the first finds no memory."""
    engine = AdapterTraffic(device=1, host=8)
    x, y = (AdapterVersion(d, 1, d, RANK) for d in "xy")
    for version in (x, y):
        assert not engine.residency.load(version.digest, version)
    engine.residency.read_on()
    for _ in "xy":
        engine.residency.collect(engine.ended_reads.get(timeout=20))
    apply = engine.bank.apply

    def fail(swap: Swap, adapter: PackedAdapter) -> None:
        if adapter.digest == "x":
            raise MemoryError
        apply(swap, adapter)

    monkeypatch.setattr(engine.bank, "apply", fail)
    engine.cache.drop("x")  # nothing but the slot has it now
    swaps = engine.residency.drain_swaps()
    assert [[slot.digest for slot in swap.evicted] for swap in swaps] in ([[], ["x"]], [[], ["y"]])
    engine.residency.apply(swaps)
    assert "x" not in engine.cache.digests
