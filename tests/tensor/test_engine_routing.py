"""The routed low-rank sum, by every path that the planner may take, against one row at a time in float64."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from random import Random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from loramux_server.core.errors import Code, Error
from loramux_server.cpu.routed import load_kernel
from loramux_server.lora import bank as banks
from loramux_server.lora import blocks, routing
from loramux_server.lora.bank import AdapterBank, HostAdapter, LoraPair
from loramux_server.lora.blocks import BankBlock, KernelBlock
from loramux_server.lora.context import StepContext
from loramux_server.lora.routed_linear import LinearGroup
from loramux_server.lora.routing import Routing, plan_blocks
from loramux_server.lora.slots import Move, RowSegment, Slot
from tests.examples import examples

IN = 38  # two vectors of the compiled kernel and a rest


class Dense:
    """A base product with plain weights."""

    def __init__(self, *out_features: int) -> None:
        self.out_features = out_features
        self.weight = torch.randn(sum(out_features), IN, generator=torch.Generator().manual_seed(1))
        self.nbytes = self.weight.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        return x @ self.weight.T.to(x.dtype)


def make_groups() -> list[LinearGroup]:
    context = StepContext()
    return [
        LinearGroup(0, ["m.0.q_proj", "m.0.k_proj", "m.0.v_proj"], IN, Dense(40, 20, 4), context),
        LinearGroup(1, ["m.0.o_proj"], IN, Dense(33), context),
    ]


@pytest.fixture(autouse=True, params=["kernel", "products"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The compiled kernel where it pays, or torch's products alone."""
    if request.param == "products":
        monkeypatch.setattr(banks, "load_kernel", lambda: None)
    elif load_kernel() is None:
        pytest.skip("no C++ compiler here")
    return str(request.param)


GROUPS = make_groups()
MODULES = {name: (g, j) for g in GROUPS for j, name in enumerate(g.names)}


def make_bank(rows: int, dtype: torch.dtype = torch.float32) -> AdapterBank:
    return AdapterBank(GROUPS, rows, torch.device("cpu"), dtype)


def adapter(digest: str, rank: int, modules: Sequence[str] = tuple(MODULES), seed: int = 0) -> HostAdapter:
    """Random pairs; every module but the first may have a smaller rank and a scaling of its own."""
    draw, tensors = Random(f"{digest}{seed}"), torch.Generator().manual_seed(hash((digest, seed)) % 2**31)
    pairs = {}
    for i, name in enumerate(modules):
        group, j = MODULES[name]
        r = rank if i == 0 else draw.randint(1, rank)
        pairs[name] = LoraPair(
            torch.randn(r, IN, generator=tensors),
            torch.randn(group.out_features[j], r, generator=tensors),
            draw.choice([0.5, 1.0, 2.0]),
        )
    return HostAdapter(digest, pairs)


def delta(group: LinearGroup, x: Tensor, stack: Sequence[tuple[HostAdapter, float]]) -> Tensor:
    """What a stack adds to the rows ``x``, module by module, in float64."""
    x = x.double()
    out = torch.zeros(len(x), sum(group.out_features), dtype=torch.float64)
    for host, weight in stack:
        for name, pair in host.pairs.items():
            if name in group.names:
                columns = group.columns[group.names.index(name)]
                out[:, columns] += weight * pair.scaling * (x @ pair.a.double().T @ pair.b.double().T)
    return out


def rounded(host: HostAdapter, dtype: torch.dtype) -> HostAdapter:
    """The adapter whose float32 values are those that a bank of ``dtype`` holds of ``host``."""
    scaling = max(p.scaling for p in host.pairs.values())
    pairs = {
        name: LoraPair(p.a.to(dtype).float(), (p.b * (p.scaling / scaling)).to(dtype).float(), scaling)
        for name, p in host.pairs.items()
    }
    return HostAdapter(host.digest, pairs)


def expected(group: LinearGroup, x: Tensor, segments: Sequence[tuple[int, list[tuple[HostAdapter, float]]]]) -> Tensor:
    parts = x.split([length for length, _ in segments])
    added = torch.cat([delta(group, rows, stack) for rows, (_, stack) in zip(parts, segments, strict=True)])
    return group.base(x).double() + added


def resolve(bank: AdapterBank, segments: Sequence[tuple[int, list[tuple[HostAdapter, float]]]]) -> list[RowSegment]:
    return [RowSegment(length, tuple((bank.slot(h.digest), w) for h, w in stack)) for length, stack in segments]


def make_mix(seed: int) -> tuple[AdapterBank, list[tuple[int, list[tuple[HostAdapter, float]]]]]:
    """A bank with gaps in it, and segments over its adapters: decode rows (adapted, bare), then prompts of any kind."""
    random = Random(seed)
    bank = make_bank(96)
    hosts = []
    for i in range(random.randint(1, 8)):
        modules = random.sample(sorted(MODULES), random.randint(1, len(MODULES)))
        hosts.append(adapter(f"d{i}", random.randint(1, 9), modules, random.randint(0, 99)))
        assert bank.put(hosts[-1]) is not None
    kept = [h for h in hosts if random.random() < 0.7] or hosts[:1]
    for host in hosts:
        if host not in kept:
            bank.drop(host.digest)  # its rows stay as they are: nobody may read them

    def stack(least: int) -> list[tuple[HostAdapter, float]]:
        chosen = random.sample(kept, random.randint(min(least, len(kept)), min(3, len(kept))))
        return [(h, random.choice([1.0, 0.5, -0.7])) for h in chosen]

    segments = [(1, stack(1)) for _ in range(random.randint(0, 5))] + [(1, [])] * random.randint(0, 2)
    segments += [(random.randint(2, 12), stack(0)) for _ in range(random.randint(0, 5))]
    return bank, segments or [(1, stack(1))]


@pytest.mark.parametrize("overhead", [0, 100, 10**9], ids=["apart", "by cost", "joint"])
@pytest.mark.parametrize("sparse", [0, 2, 10**9], ids=["gathered", "by size", "spanned"])
@given(seed=st.integers(0, 10**6))
@examples(25)
def test_every_path_gives_the_sum(overhead: int, sparse: float, seed: int) -> None:
    bank, segments = make_mix(seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(routing, "BLOCK_OVERHEAD", {"cpu": overhead})
        patch.setattr(routing, "GRADIENT_OVERHEAD", {"cpu": overhead})
        patch.setattr(blocks, "SPARSE", sparse)
        training = Routing(tuple(plan_blocks(bank, resolve(bank, segments))))
        with torch.inference_mode():
            serving = Routing(tuple(plan_blocks(bank, resolve(bank, segments))))
    x = torch.randn(sum(n for n, _ in segments), IN, generator=torch.Generator().manual_seed(len(segments)))
    for group in GROUPS:
        wanted = expected(group, x, segments)
        for _ in range(2):  # gathered weights are kept between calls
            with torch.inference_mode():
                assert torch.allclose(serving.add(group, x, group.base(x)).double(), wanted, atol=1e-4)
        leaf = x.clone().requires_grad_()
        out = training.add(group, leaf, group.base(leaf))
        assert torch.allclose(out.detach().double(), wanted, atol=1e-4)
        reference = x.double().requires_grad_()
        expected(group, reference, segments).square().sum().backward()
        out.square().sum().backward()
        assert leaf.grad is not None
        assert reference.grad is not None
        assert (leaf.grad.double() - reference.grad).abs().max() <= 1e-5 * reference.grad.abs().max() + 1e-6


@pytest.mark.parametrize(
    ("activations", "weights", "tolerance"),
    [
        (torch.float32, torch.float32, 1e-5),
        (torch.float32, torch.bfloat16, 1e-5),
        (torch.bfloat16, torch.bfloat16, 2e-2),
    ],
    ids=str,
)
def test_the_kernel_gives_the_sum_in_every_type(
    form: str, activations: torch.dtype, weights: torch.dtype, tolerance: float
) -> None:
    """Runs of more rows than a thread takes at once, ranks that fill no vector, rows that are views of wider ones."""
    if form != "kernel":
        pytest.skip("it is about the kernel")
    bank = make_bank(96, weights)
    hosts = [adapter(f"d{i}", rank) for i, rank in enumerate((1, 4, 7, 16, 33))]
    for host in hosts:
        bank.put(host)
    # What the bank holds, not what it was given: bfloat16 rounds.
    hosts = [rounded(h, weights) for h in hosts]
    segments = [(1, [(hosts[4], 0.7)]), (1, []), (2, [(hosts[0], 1.0), (hosts[3], -0.5)]), (37, [(hosts[2], 2.0)])]
    segments += [(5, []), (3, [(h, 0.25) for h in hosts])]
    rows = sum(n for n, _ in segments)
    x = torch.randn(rows, 2 * IN, generator=torch.Generator().manual_seed(3)).to(activations)[:, :IN]
    for group in GROUPS:
        y = group.base(x)
        with torch.inference_mode():
            blocks = plan_blocks(bank, resolve(bank, segments))
            assert [type(b) for b in blocks] == [KernelBlock]
            got = blocks[0].add(group, x, y.clone())
        wanted = y.double() + expected(group, x, segments) - group.base(x).double()
        assert (got.double() - wanted).abs().max() <= tolerance * wanted.abs().max()


def test_the_planner_takes_both_paths_by_cost() -> None:
    """Many short prompts of one adapter share a block; long ones of their own adapters stand apart."""
    bank = make_bank(64)
    hosts = [adapter(f"d{i}", 8) for i in range(4)]
    slots = [bank.put(h) for h in hosts]
    assert None not in slots
    shared = [RowSegment(5, ((slots[0], 1.0),)) for _ in range(6)]  # type: ignore[arg-type]
    assert len(plan_blocks(bank, shared)) == 1
    alone = [RowSegment(2000, ((slot, 1.0),)) for slot in slots]  # type: ignore[arg-type]
    assert len(plan_blocks(bank, alone)) == 4
    assert plan_blocks(bank, [RowSegment(1), RowSegment(9)]) == []


def test_on_a_gpu_adapters_of_a_prompt_step_share_one_block() -> None:
    """Nineteen blocks of 120 groups would take their launches alone 0.17 s there."""
    slots = [Slot(f"d{i}", 16 * i, 16 * i + 16) for i in range(9)]
    run = [RowSegment(57, ((slot, 1.0), (slots[i - 1], 0.5))) for i, slot in enumerate(slots)]
    with torch.inference_mode():
        assert routing.one_block_pays(run, "cuda")
        assert not routing.one_block_pays(run, "cpu")


def test_scattered_ranks_are_gathered() -> None:
    bank = make_bank(64)
    slots = [bank.put(adapter(f"d{i}", 4)) for i in range(10)]
    near = BankBlock(bank, slice(0, 1), slots[:2], lambda _: 1.0)  # type: ignore[arg-type]
    far = BankBlock(bank, slice(0, 1), [slots[0], slots[9]], lambda _: 1.0)  # type: ignore[list-item]
    assert near._index is None
    assert far._index is not None
    assert far._index.tolist() == [0, 1, 2, 3, 36, 37, 38, 39]


def test_bare_rows_among_decode_rows_are_refused() -> None:
    bank = make_bank(8)
    slot = bank.put(adapter("d", 2))
    with pytest.raises(ValueError, match="before"):
        plan_blocks(bank, [RowSegment(1), RowSegment(1, ((slot, 1.0),))])  # type: ignore[arg-type]


@pytest.mark.parametrize("sparse", [0, 10**9])
@pytest.mark.parametrize("poison", [torch.nan, torch.inf, 3e38])
def test_a_broken_adapter_stays_with_its_own_rows(
    monkeypatch: pytest.MonkeyPatch, sparse: float, poison: float
) -> None:
    """Decode rows share one product over all ranks in use; what a row does not use must not reach it."""
    monkeypatch.setattr(blocks, "SPARSE", sparse)
    bank = make_bank(16)
    hosts = [adapter(f"d{i}", 4) for i in range(3)]
    slots = [bank.put(h) for h in hosts]
    for a in bank.a:
        a[slots[1].lo : slots[1].hi] = poison  # type: ignore[union-attr]
    x = torch.randn(4, IN, generator=torch.Generator().manual_seed(0)) + 5
    segments = [(1, [(hosts[0], 1.0)]), (1, [(hosts[1], 1.0)]), (1, [(hosts[0], 0.5), (hosts[2], 1.0)]), (1, [])]
    with torch.inference_mode():
        route = Routing(tuple(plan_blocks(bank, resolve(bank, segments))))
    for group in GROUPS:
        with torch.inference_mode():
            out = route.add(group, x, group.base(x))
        wanted = expected(group, x, segments)
        mates = [0, 2, 3]
        assert torch.allclose(out[mates].double(), wanted[mates], atol=1e-4)
        assert not out[1].isfinite().all()


# -- the bank ---------------------------------------------------------------------------------------------------------


def holds(bank: AdapterBank, host: HostAdapter) -> bool:
    """Whether the rows of ``host`` are what its files say, and nothing else is in them."""
    slot = bank.slot(host.digest)
    x = torch.eye(IN)
    block = BankBlock(bank, slice(0, IN), [slot], lambda s: s.scaling)
    for group in GROUPS:
        y = torch.zeros(IN, sum(group.out_features))
        with torch.inference_mode():
            got = block.add(group, x, y) if block.acts_on(group) else y
        if not torch.allclose(got.double(), delta(group, x, [(host, 1.0)]), atol=1e-4):
            return False
    return True


def test_the_least_recently_used_goes_and_the_pinned_stays() -> None:
    bank = make_bank(12)
    hosts = [adapter(f"d{i}", 4) for i in range(4)]
    for host in hosts[:3]:
        bank.put(host)
    bank.acquire("d0")
    bank.get("d1")
    assert bank.put(hosts[3]) is not None
    assert set(bank.digests) == {"d0", "d1", "d3"}
    assert bank.evictions == 1
    assert not bank.drop("d0")
    bank.release("d0")
    assert bank.drop("d0")
    assert bank.drop("never was")


def test_what_cannot_fit_beside_the_pinned_drops_nobody() -> None:
    bank = make_bank(12)
    for i in range(3):
        bank.put(adapter(f"d{i}", 4))
    bank.acquire("d0")
    assert bank.put(adapter("big", 9)) is None
    assert set(bank.digests) == {"d0", "d1", "d2"}
    bank.release("d0")
    assert bank.put(adapter("big", 9)) is not None


@pytest.mark.parametrize("at_a_time", [1, 2, 100])
def test_scattered_free_rows_are_joined_and_content_moves_along(
    at_a_time: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(banks, "MOVED", at_a_time)
    bank = make_bank(12)
    hosts = {f"d{i}": adapter(f"d{i}", 3) for i in range(4)}
    for host in hosts.values():
        bank.put(host)
    bank.acquire("d1")
    bank.acquire("d3")
    bank.drop("d0")
    bank.drop("d2")
    wide = adapter("wide", 6)
    packed = bank.pack(wide)
    swap = bank.plan(packed)
    assert swap is not None
    assert (swap.slot.lo, swap.evicted, swap.moves) == (6, (), (Move(3, 6, 0), Move(9, 12, 3)))
    bank.apply(swap, packed)
    assert bank.evictions == 0
    assert all(holds(bank, h) for h in (hosts["d1"], hosts["d3"], wide))


def test_a_packed_adapter_is_in_the_bank_to_the_bit() -> None:
    """Over what another left there: smaller ranks and missing modules are zero, the rest is as its files say."""
    bank = make_bank(12, torch.bfloat16)
    for tensor in bank.buffers:
        tensor.fill_(torch.nan)
    host = adapter("d", 6, ["m.0.q_proj", "m.0.v_proj"], seed=3)
    packed = bank.pack(host)
    assert packed.nbytes == 6 * 2 * (3 * IN + 64)  # the group that it does not act on takes nothing
    slot = bank.put(host)
    assert slot is not None
    rows = slice(slot.lo, slot.hi)
    for name, (group, j) in MODULES.items():
        a, b = bank.a[group.index][rows, j], bank.b[group.index][j][rows]
        pair = host.pairs.get(name)
        rank = 0 if pair is None else len(pair.a)
        assert not a[rank:].any()
        assert not b[rank:].any()
        if pair is not None:
            assert torch.equal(a[:rank], pair.a.bfloat16())
            assert torch.equal(b[:rank], (pair.b.T * (pair.scaling / packed.scaling)).bfloat16())
    assert bank.a[0][slot.hi :].isnan().all()


def test_refusals_say_what_to_do() -> None:
    bank = make_bank(4)
    with pytest.raises(Error) as refused:
        bank.put(adapter("big", 5))
    assert refused.value.code is Code.RESOURCE_EXHAUSTED
    assert "--adapter-memory" in refused.value.message
    for pairs in ({}, {"m.9.q_proj": LoraPair(torch.zeros(1, IN), torch.zeros(8, 1), 1.0)}):
        with pytest.raises(Error) as refused:
            bank.put(HostAdapter("odd", pairs))
        assert refused.value.code is Code.INVALID_ARGUMENT
    with pytest.raises(KeyError):
        bank.acquire("absent")
    assert bank.digests == ()


@given(st.integers(0, 10**6))
@examples(40)
def test_a_banks_life(seed: int) -> None:
    """Random puts, drops and pins: slots never overlap, contents never change, and what fits by count fits."""
    draw = Random(seed)
    bank = make_bank(20)
    hosts = {f"d{i}": adapter(f"d{i}", draw.randint(1, 9), seed=seed) for i in range(8)}
    pins: list[str] = []
    for _ in range(40):
        digest = draw.choice(sorted(hosts))
        match draw.choice(["put", "put", "pin", "unpin", "drop"]):
            case "put":
                was = digest in bank.digests
                pinned = sum(bank.slot(d).rank for d in {*pins} - {digest})
                slot = bank.put(hosts[digest])
                assert (slot is not None) == (was or pinned + hosts[digest].rank <= bank.rows)
            case "pin" if digest in bank.digests:
                bank.acquire(digest)
                pins.append(digest)
            case "unpin" if pins:
                bank.release(pins.pop(draw.randrange(len(pins))))
            case "drop":
                assert bank.drop(digest) == (digest not in pins)
        assert bank.in_use == len(pins)
        assert {*pins} <= {*bank.digests}
        slots = sorted((bank.slot(d) for d in bank.digests), key=lambda s: s.lo)
        assert all(a.hi <= b.lo for a, b in pairwise(slots))
        assert all(holds(bank, hosts[d]) for d in bank.digests)
        assert bank.used_bytes == sum(s.rank for s in slots) * AdapterBank.row_bytes(GROUPS, torch.float32)
