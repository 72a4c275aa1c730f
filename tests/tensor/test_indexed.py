"""Adapters by index: Triton's interpreter runs the kernels against torch's products and PEFT's arithmetic, and its
compiler makes them for GPUs that are not here."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from random import Random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from loramux_server.lora.bank import AdapterBank, HostAdapter, LoraPair
from loramux_server.lora.blocks import IndexedBlock, StaticBlock, used_ranks
from loramux_server.lora.indexed import operator
from loramux_server.lora.indexed.plan import HEADER, RANKS, SHORT, TALL, longest_plan, make_plan, most_tiles
from loramux_server.lora.routing import Routing, plan_blocks
from loramux_server.lora.slots import RowSegment, Slot
from tests.examples import examples
from tests.tensor.interpreted import interpreted
from tests.tensor.test_engine_routing import GROUPS, IN, adapter, expected, make_bank, make_mix, resolve, rounded

triton = pytest.importorskip("triton")


@pytest.fixture(scope="module", autouse=True)
def in_numpy() -> Iterator[None]:
    builder = importlib.import_module("triton.runtime.interpreter").InterpreterBuilder
    create_dot, bfloat16 = builder.create_dot, triton.language.bfloat16

    def dot(self, a, b, *rest):  # type: ignore[no-untyped-def]
        """The interpreter multiplies bfloat16 as the integers that it keeps them in."""
        if a.dtype.scalar == bfloat16:
            a, b = (self.create_fp_ext(v, triton.language.float32) for v in (a, b))
        return create_dot(self, a, b, *rest)

    with interpreted("loramux_server.lora.indexed.kernels") as kernels, pytest.MonkeyPatch.context() as patch:
        patch.setattr(builder, "create_dot", dot)
        patch.setattr(operator, "_kernels", lambda: kernels)
        yield


def indexed(bank: AdapterBank) -> AdapterBank:
    """The bank of a GPU on which the kernels run."""
    bank.by_index, bank.kernel = True, None
    return bank


@given(seed=st.integers(0, 10**6))
@examples(6)
def test_the_kernels_give_the_sum(seed: int) -> None:
    """Decode rows, bare rows and prompts over a bank with gaps, by the eager step's block."""
    bank, segments = make_mix(seed)
    routes = resolve(indexed(bank), segments)
    x = torch.randn(sum(n for n, _ in segments), IN, generator=torch.Generator().manual_seed(seed))
    with torch.inference_mode():
        blocks = plan_blocks(bank, routes)
        assert [type(b) for b in blocks] == [IndexedBlock] * any(stack for _, stack in segments)
        for group in GROUPS:
            got = Routing(tuple(blocks)).add(group, x, group.base(x))
            assert torch.allclose(got.double(), expected(group, x, segments), atol=1e-4)


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [
        (torch.float32, 1e-5),
        pytest.param(torch.float16, 2e-3, marks=pytest.mark.slow),
        (torch.bfloat16, 1.6e-2),
    ],
    ids=str,
)
def test_any_ranks_and_types(dtype: torch.dtype, tolerance: float) -> None:
    """Ranks 1 to 64 in one stack, items of both heights, rows that are views of wider ones; and twice the same bits."""
    bank = indexed(make_bank(192, dtype))
    hosts = [adapter(f"d{i}", rank) for i, rank in enumerate((1, 4, 7, 16, 33, 64))]
    for host in hosts:
        bank.put(host)
    hosts = [rounded(h, dtype) for h in hosts]
    draw = torch.Generator().manual_seed(4)
    for length in (3, TALL + 6) if dtype is torch.float32 else (3,):
        segments = [(1, [(hosts[5], 0.7)]), (1, []), (2, [(hosts[0], 1.0), (hosts[3], -0.5)])]
        segments += [(length, [(h, 0.25) for h in hosts]), (2, []), (3, [(hosts[4], -1.0), (hosts[1], 2.0)])]
        rows = sum(n for n, _ in segments)
        x = torch.randn(rows, 2 * IN, generator=draw).to(dtype)[:, :IN]
        for group in GROUPS:
            y = torch.randn(rows, sum(group.out_features), generator=draw).to(dtype)
            with torch.inference_mode():
                (block,) = plan_blocks(bank, resolve(bank, segments))
                got, again = (block.add(group, x, y.clone()) for _ in range(2))
            wanted = y.double() + expected(group, x, segments) - group.base(x).double()
            assert (got.double() - wanted).abs().max() <= tolerance * wanted.abs().max()
            assert torch.equal(got, again)


@given(seed=st.integers(0, 10**6))
@examples(3)
def test_one_block_serves_step_after_step(seed: int) -> None:
    """What graphs share: filled for one step after another, it gives what gathered weights give, and leaves padding."""
    draw = Random(seed)
    bank = make_bank(40)
    hosts = [adapter(f"g{i}", rank, seed=seed) for i, rank in enumerate((4, 17, 3, 9))]
    for host in hosts:
        bank.put(host)
    huge = {n: LoraPair(torch.full((2, IN), 3e38), p.b[:, :2], 1.0) for n, p in hosts[0].pairs.items()}
    broken = HostAdapter("broken", huge)
    bank.put(broken)
    rows = draw.choice((5, 20))
    block, gathered = IndexedBlock.for_decoding(bank, rows), StaticBlock(bank, rows, 40)
    for _ in range(2):
        segments: list[RowSegment] = []
        while (left := rows - sum(s.length for s in segments)) > 2:
            stack = draw.sample([*hosts, broken], draw.randint(0, 3))
            entries = tuple((bank.slot(h.digest), draw.choice([1.0, -0.5])) for h in stack)
            segments.append(RowSegment(min(left, draw.choice([1, 1, 1, 4])), entries))
        used = sum(s.length for s in segments)
        plan = make_plan(segments, SHORT)
        assert len(plan) <= longest_plan(rows, bank.rows)
        assert plan[1] <= most_tiles(rows, bank.rows)
        assert used_ranks(segments) <= bank.rows
        with torch.inference_mode():
            block.fill(segments)
            gathered.fill(segments)
            for group in GROUPS:
                x = torch.randn(rows, IN).abs() + 1
                y = torch.randn(rows, sum(group.out_features))
                x[used:] = torch.nan
                got, wanted = (b.add(group, x, y.clone()) for b in (block, gathered))
                torch.testing.assert_close(got[:used], wanted[:used], atol=1e-4, rtol=1e-4, equal_nan=True)
                assert torch.equal(got[used:], y[used:])
                own = [any(slot.digest == "broken" for slot, _ in s.entries) for s in segments for _ in range(s.length)]
                assert got[:used].isfinite().all(-1).tolist() == [not bad for bad in own]


def test_a_plan_names_what_acts() -> None:
    """Rows of decode share an item of sixteen; a prompt is cut, and all its rows share a line of coefficients."""
    a, b = Slot("a", 0, 4, 2.0), Slot("b", 20, 40)
    decode = [RowSegment(1, ((a, 0.5),)), RowSegment(1), RowSegment(1, ((b, 1.0), (a, 1.0))), RowSegment(9)]
    plan = make_plan(decode, SHORT)
    items, tiles, items_at, tiles_at, ranks_at = plan[:5].tolist()
    assert (items, tiles, items_at) == (1, 2, HEADER)
    assert plan[items_at:tiles_at].tolist() == [0, 3, 0, 2]  # the bare rows at the end are in no item
    assert plan[ranks_at : ranks_at + 2 * RANKS].tolist() == [0, 1, 2, 3, *range(20, 40), *[-1] * 8]
    row0, length, at, step = plan[tiles_at : tiles_at + 4].tolist()
    assert (row0, length, step) == (0, 3, RANKS)
    coefficients = torch.from_numpy(plan[at : at + 3 * RANKS]).view(torch.float32).view(3, RANKS)
    assert coefficients[:, 0].tolist() == [1.0, 0.0, 2.0]
    assert coefficients[:, 4].tolist() == [0.0, 0.0, 1.0]
    plan = make_plan([RowSegment(1, ((a, 1.0),)), RowSegment(TALL + 1, ((b, 1.0),))], TALL)
    assert plan[:2].tolist() == [3, 5]
    assert plan[HEADER : HEADER + 12].reshape(3, 4).tolist() == [[0, 1, 0, 1], [1, TALL, 1, 2], [1 + TALL, 1, 3, 2]]


def test_the_trial_tells_what_is_wrong(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Kernels that give other numbers, or do not run, are not used; what runs as it should is."""
    cpu = torch.device("cpu")
    usable = operator.usable.__wrapped__
    assert usable(cpu, torch.float32)
    assert not caplog.records

    def nothing(*_: object, **__: object) -> None:
        raise RuntimeError("no compiler for this GPU")

    with monkeypatch.context() as patch:
        patch.setattr(operator, "_kernels", nothing)
        assert not usable(cpu, torch.float32)
    with monkeypatch.context() as patch:
        patch.setattr(operator, "add_indexed", lambda y, *rest: y.add_(1.0))
        assert not usable(cpu, torch.bfloat16)
    told = [record.message for record in caplog.records]
    assert ["no compiler" in told[0], "results differ" in told[1], len(told)] == [True, True, 2]


def test_the_operator_has_no_values_where_there_is_no_data() -> None:
    y: Tensor = torch.empty(4, 6, device="meta")
    planes, x, a, b = (torch.empty(n, device="meta") for n in ((9,), (4, 3), (8, 1, 3), (48,)))
    plan = torch.empty(9, dtype=torch.int32, device="meta")
    assert operator.add_indexed(y, planes, x, a, b, plan, [6], SHORT) is None


COMPILE = """
import importlib.util, json, re, subprocess, sys
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource

file, arch, cases = json.loads(sys.argv[1])
spec = importlib.util.spec_from_file_location("kernels", file)
kernels = importlib.util.module_from_spec(spec)
spec.loader.exec_module(kernels)
found = []
for dtype, name, constants, options in cases:
    kernel = getattr(kernels, name)
    types = {**dict.fromkeys("xaby", "*" + dtype), "planes": "*fp32", "plan": "*i32"}
    types |= dict.fromkeys(constants, "constexpr")
    signature = {n: types.get(n, "i32") for n in kernel.arg_names}
    where = {n: (i,) for i, n in enumerate(kernel.arg_names)}
    any_number = ("members", "programs", "bank_rows", *constants)
    whole = {where[n]: [["tt.divisibility", 16]] for n in where if n not in any_number}
    source = ASTSource(kernel, signature, {where[n]: v for n, v in constants.items()}, whole)
    made = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    with open("kernel.ptx", "w") as ptx:
        ptx.write(made.asm["ptx"])
    target = re.search(r"\\.target (sm_\\w+)", made.asm["ptx"]).group(1)
    command = [get_ptxas(arch).path, "-v", "--gpu-name", target, "kernel.ptx", "-o", "kernel.cubin"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    spills = sum(map(int, re.findall(r"(\\d+) bytes spill", said)))
    found.append([made.metadata.shared, spills, int(re.search(r"Used (\\d+) registers", said).group(1))])
print(json.dumps(found))
"""
SHARED = {80: 163 << 10, 89: 99 << 10, 90: 227 << 10}
"""Bytes of shared memory that a block may have, by compute capability."""


@pytest.mark.parametrize(
    "arch", [pytest.param(80, marks=pytest.mark.slow), pytest.param(89, marks=pytest.mark.slow), 90]
)
def test_the_kernels_compile_for_a_gpu(arch: int, tmp_path) -> None:  # type: ignore[no-untyped-def]
    """Without spilled registers, and with shared memory that lets two blocks run on a multiprocessor at once."""
    file = importlib.import_module("loramux_server.lora.indexed.kernels").__file__
    cases = []
    for dtype in ("bf16", "fp16", "fp32") if arch != 90 else ("bf16",):
        for height, tiling in operator.TILINGS.items():
            constants = {"HEIGHT": height, "SPLITS": tiling.splits, "BLOCK": tiling.block}
            options = {"num_warps": tiling.warps, "num_stages": tiling.stages}
            cases += [(dtype, "shrink", constants, options)]
            cases += [(dtype, "expand", {**constants, "COLUMNS": tiling.columns}, options)]
    line = [sys.executable, "-W", "ignore", "-c", COMPILE, json.dumps([file, arch, cases])]
    environment = {"PATH": "/usr/bin:/bin", "TRITON_CACHE_DIR": str(tmp_path), "HOME": str(tmp_path)}
    done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert len(found) == len(cases)
    for shared, spills, registers in found:
        assert spills == 0
        assert 2 * shared <= SHARED[arch]
        assert 2 * 128 * registers <= 65536
