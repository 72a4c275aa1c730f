"""Decode steps as graphs give what they give without: padding, buffers, buckets, adapters that come and move.

A tape stands in for CUDA (tests/tensor/tape.py) and plain code for its attention kernel; what is captured, how its
inputs are filled and when it is used is the server's.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from random import Random

import pytest
import torch
from torch import Tensor

from loramux_server.core.errors import Code
from loramux_server.core.settings import EngineSettings
from loramux_server.cpu import native
from loramux_server.engine import memory
from loramux_server.engine.execution import graphs as graphs_module
from loramux_server.engine.execution.capture import CaptureBroken, CudaCapture, pool_bytes
from loramux_server.engine.execution.graph_families import ROWS, graph_bytes
from loramux_server.engine.execution.graphs import GraphFamily, Parts, upto
from loramux_server.engine.memory import plan_memory
from loramux_server.lora.bank import HostAdapter, LoraPair
from loramux_server.lora.blocks import IndexedBlock, StaticBlock, used_ranks
from loramux_server.lora.indexed import operator
from loramux_server.lora.routing import Routing, plan_blocks
from loramux_server.lora.slots import RowSegment
from loramux_server.model import kv
from loramux_server.model.attention import dense_attention
from tests.engine import Engine, check_tokens, command
from tests.examples import few
from tests.tensor.engine_cases import RANKS, STACKS, Case, Cases, check_empty, make_cases
from tests.tensor.graph_checks import compute_both_ways
from tests.tensor.interpreted import interpreted
from tests.tensor.tape import FailingCapture, TapeCapture
from tests.tensor.test_engine_routing import GROUPS, adapter, make_bank

TOLERANCE = 1e-4
HUGE = 5


def one_query_each(q, keys, values, starts, used, table, longest_q, longest_k, *, scale, window) -> Tensor:  # type: ignore[no-untyped-def]
    """The kernel's contract for decode rows, without a look at any value."""
    assert longest_q == 1
    assert starts.shape[0] == q.shape[0] + 1
    ks, vs = (x[table.long()].flatten(1, 2).transpose(1, 2) for x in (keys, values))
    assert ks.shape[2] <= longest_k
    positions = torch.arange(ks.shape[2])
    mask = positions < used[:, None]
    if window is not None:
        mask &= used[:, None] - positions <= window
    out = dense_attention(q[:, :, None], ks, vs, scale=scale, softcap=None, mask=mask[:, None, None, :])
    return out.squeeze(2)


@pytest.fixture(scope="module", autouse=True)
def only_torch() -> Iterator[None]:
    """A tape sees torch's operations and no others, so the host's own compiled functions are not used, as on a GPU."""
    with pytest.MonkeyPatch.context() as patch:
        for module in list(sys.modules.values()):
            if getattr(module, "build", None) is native.build and module is not native:
                patch.setattr(module, "build", lambda source: None)
        yield


@pytest.fixture(autouse=True)
def kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv, "paged_kernel", one_query_each)


@pytest.fixture(autouse=True)
def both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    compute_both_ways(monkeypatch, lambda got, expected: float((got - expected).abs().max()) < TOLERANCE)


def add_graphs(engine: Engine, capture: TapeCapture | None = None, rows: int = 64) -> GraphFamily:
    runner = engine.runner
    parts = Parts.of(engine.base, runner.kv, runner.bank, capture or TapeCapture(), rows, rows)
    made = GraphFamily(parts, upto(ROWS, rows))
    engine.runner.graphs = made
    return made


@pytest.fixture(scope="module")
def cases(tiny_base, make_adapter, tmp_path_factory) -> Iterator[Cases]:  # type: ignore[no-untyped-def]
    made = make_cases(tiny_base("llama"), tmp_path_factory.mktemp("graphs"), make_adapter)
    yield made
    made.close()


@pytest.mark.parametrize("arch", few(["qwen3", "mistral", "gemma3_text", "mixtral"]))
def test_mixed_stacks_over_many_steps(arch: str, tiny_base, make_adapter, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """All kinds of stacks together, requests coming and going: several buckets, each padded and each reused."""
    cases = make_cases(tiny_base(arch), tmp_path, make_adapter)
    engine, capture = cases.engine(max_batch_tokens=64), TapeCapture()
    graphs = add_graphs(engine, capture)
    draw = Random(5)
    for _ in range(2):
        cases.try_in(engine, cases.draw(draw, 9), stagger=lambda: draw.random() < 0.5)
    cases.try_in(engine, [Case(cases.prompts[0], cases.stack([]))])
    assert graphs.count >= 3
    assert {ranks > 0 for _, ranks in graphs.buckets} == {True, False}
    assert capture.steps == engine.kinds.count("decode") > 2 * graphs.count
    cases.close()


@pytest.mark.slow
def test_adapters_that_are_swapped_in_and_moved(cases: Cases, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bank too small for all of them: what a captured graph gathers changes under it, by evictions and by moves."""
    engine = cases.engine(adapter_rows=12, max_batch_tokens=64)
    graphs = add_graphs(engine)
    moves = []
    bank = engine.runner.bank
    close = bank._close_gaps
    monkeypatch.setattr(bank, "_close_gaps", lambda: (moves.append(1), close())[1])
    draw = Random(2)
    single = [[(name, 1.0)] for name in ("all", "rs", "upper", "attention")]
    for _ in range(8):
        cases.try_in(engine, cases.draw(draw, 6, [*STACKS[:6], *single]), stagger=lambda: draw.random() < 0.7)
    assert bank.evictions > 3
    assert moves
    before = graphs.count
    cases.try_in(engine, cases.draw(draw, 6, single))
    assert graphs.count <= before + 1


def test_static_block_follows_the_bank() -> None:
    """The same buffers before and after a compaction, over less and over more, against the step's own plan."""
    torch.manual_seed(26)
    bank = make_bank(26)
    hosts = [adapter(f"g{i}", rank) for i, rank in enumerate((4, 6, 3, 7))]
    for host in hosts:
        bank.put(host)
    block = StaticBlock(bank, 5, 20)

    def check(*stacks: list[tuple[int, float]], last: int = 1) -> None:
        """Rows by their stacks; the last has ``last`` rows, as a sequence with a draft has."""
        lengths = [1] * (len(stacks) - 1) + [last]
        segments = [
            RowSegment(length, tuple((bank.slot(hosts[i].digest), w) for i, w in stack))
            for length, stack in zip(lengths, stacks, strict=True)
        ]
        block.fill(segments)
        for group in GROUPS:
            x = torch.randn(5, group.in_features).abs() + 1
            y = torch.randn(5, sum(group.out_features))
            got = Routing((block,)).add(group, x, y.clone())
            with torch.no_grad():
                expected = Routing(tuple(plan_blocks(bank, segments))).add(group, x, y.clone())
            torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4, equal_nan=True)
            harmless = [
                not any(i == HUGE for i, _ in s) for s, n in zip(stacks, lengths, strict=True) for _ in range(n)
            ]
            assert got[harmless + [True] * (5 - sum(lengths))].isfinite().all()

    with torch.inference_mode():
        check([(0, 1.0), (1, -0.5)], [(2, 2.0)], [(3, 0.25), (0, 1.5)])
        check([(1, 1.0)])
        check([(0, 1.0), (1, -0.5)], [(2, 2.0)], last=3)
        places = [bank.slot(h.digest).lo for h in (hosts[1], hosts[3])]
        bank.drop("g0")
        bank.drop("g2")
        bank.acquire("g1")
        bank.acquire("g3")
        wide = adapter("wide", 11)
        hosts.append(wide)
        bank.put(wide)
        assert [bank.slot(h.digest).lo for h in (hosts[1], hosts[3])] != places
        check([(3, 1.0)], [(1, 1.0)])
        check(*[[] for _ in range(5)])
        # Products of its A are infinite, and stay with its own row.
        huge = {n: LoraPair(torch.full((2, p.a.shape[1]), 3e38), p.b[:, :2], 1.0) for n, p in wide.pairs.items()}
        hosts.append(HostAdapter("huge", huge))
        bank.put(hosts[HUGE])
        check([(1, 1.0)], [(HUGE, 1.0), (3, 1.0)], [])
        assert used_ranks([RowSegment(1, ((bank.slot("g1"), 1.0),)), RowSegment(1, ((bank.slot("g1"), 0.5),))]) == 6


@pytest.mark.slow
def test_by_index_one_graph_takes_any_ranks(cases: Cases, monkeypatch: pytest.MonkeyPatch) -> None:
    """All graphs are there from the start, and what they share is filled anew for other stacks and other rows."""
    pytest.importorskip("triton")
    engine, capture = cases.engine(max_batch_tokens=64, adapter_rows=24), TapeCapture()
    engine.runner.bank.by_index = True
    graphs = add_graphs(engine, capture, rows=2)
    with interpreted("loramux_server.lora.indexed.kernels") as kernels:
        monkeypatch.setattr(operator, "_kernels", lambda: kernels)
        graphs.prepare()
        captured = {(1, 0), (1, 24), (2, 0), (2, 24)}
        assert {*graphs.buckets} == captured
        wanted = [Case(cases.prompts[i][:4], cases.stack(stack), 3) for i, stack in enumerate((STACKS[3], STACKS[0]))]
        cases.try_in(engine, wanted)
        cases.try_in(engine, [Case(cases.prompts[2][:4], cases.stack([]), 3)])
    assert {*graphs.buckets} == captured
    assert capture.steps == engine.kinds.count("decode") > 3


def test_a_late_capture_by_index_routes_no_rows_of_the_step_before(cases: Cases) -> None:
    """There may be more of them than the new graph has, and the kernels would write beyond its tensors."""
    engine = cases.engine(max_batch_tokens=64, adapter_rows=24)
    bank, items = engine.runner.bank, []
    block = IndexedBlock.for_decoding(bank, 4)

    class Noting:
        nbytes = 0

        def capture(self, step: Callable[[], object]) -> Callable[[], None]:
            items.append(int(block._plan[0]))
            return lambda: None

    slot = bank.place("d", 4).slot
    block.fill([RowSegment(1, ((slot, 1.0),))] * 4)
    assert int(block._plan[0]) == 1
    parts = Parts.of(engine.base, engine.runner.kv, bank, Noting(), 4, 4)
    parts.indexed = block
    with torch.inference_mode():
        GraphFamily(parts, [1])._add((1, bank.rows))
    assert items == [0]
    bank.drop("d")


def test_a_broken_adapter_fails_alone(cases: Cases) -> None:
    """Infinite in its own rows; in others and in padding its scale is 0 and its products are masked."""
    engine = cases.engine(max_batch_tokens=64)
    graphs = add_graphs(engine)
    mates = [Case(cases.prompts[i], cases.stack(STACKS[i]), 8) for i in range(4)]
    broken = Case(cases.prompts[4], cases.stack([("broken", 1.0)]))
    for round_ in range(2):
        ids = [f"r{round_}m{i}" for i in range(4)]
        for id, case in zip(ids, mates, strict=True):
            engine.submit(command(id, case.prompt, case.max_tokens, case.stack))
        engine.loop.turn()
        # A prompt of one token: its first step is a decode step among the others.
        engine.submit(command(f"r{round_}b", broken.prompt[:1], 4, broken.stack))
        engine.finish(*ids, f"r{round_}b")
        failure = engine.failure(f"r{round_}b")
        assert failure is not None
        assert (failure.code, failure.reason) == (Code.FAILED_PRECONDITION.value, "LOGITS_NOT_FINITE")
        for id, case in zip(ids, mates, strict=True):
            check_tokens(engine.tokens(id), cases.alone(case))
    assert graphs.count
    check_empty(engine)


@pytest.mark.slow
def test_steps_of_one_token_that_sample_nothing(cases: Cases) -> None:
    """With room for one token a step, prompts and scores are decode steps too, most of which want no logits."""
    engine, capture = cases.engine(max_batch_tokens=1), TapeCapture()
    add_graphs(engine, capture, rows=1)
    prompt, stack = cases.prompts[6], cases.stack(STACKS[3])
    result = engine.score(prompt[:9], prompt[9:], stack)
    expected = cases.reference.score(prompt[:9], prompt[9:], stack)
    torch.testing.assert_close(torch.tensor(result.logprobs), torch.tensor(expected.logprobs), atol=TOLERANCE, rtol=0)
    cases.try_in(engine, [Case(prompt, stack, 5)])
    assert capture.steps == len(engine.kinds)


def test_rows_kept_from_one_step_to_another(cases: Cases, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a step gives is its own: a grammar may hold on to it while the next steps run."""
    engine = cases.engine(max_batch_tokens=64)
    graphs, kept = add_graphs(engine), []
    run = graphs.run

    def keep(*args):  # type: ignore[no-untyped-def]
        logits = run(*args)
        if logits is not None:
            kept.append((logits, logits.clone()))
        return logits

    monkeypatch.setattr(graphs, "run", keep)
    engine.run(*(command(f"k{i}", cases.prompts[i], 6, cases.stack(STACKS[i])) for i in range(3)))
    assert len(kept) > 3
    assert all(torch.equal(logits, then) for logits, then in kept)


@pytest.mark.slow
def test_prepared_at_the_start_and_bounded(cases: Cases, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, capture = cases.engine(max_batch_tokens=64), TapeCapture()
    graphs = add_graphs(engine, capture, rows=6)
    graphs.prepare()
    assert graphs.buckets == [(1, 0), (2, 0), (4, 0), (6, 0)]
    monkeypatch.setattr(graphs_module, "MOST", 5)
    with torch.inference_mode():
        assert graphs._find(5, 7) is not None  # the last one that may be captured: for six rows
        assert graphs._find(7, 0) is None
        assert graphs._find(6, 17) is None
    done = capture.steps
    cases.try_in(engine, [Case(p, cases.stack([("rs", 1.0)]), 3) for p in cases.prompts[:2]])
    assert capture.steps > done  # it serves fewer rows too
    assert set(graphs.buckets) == {(1, 0), (2, 0), (4, 0), (6, 0), (6, 16)}


def serve_twice(engine: Engine, cases: Cases) -> None:
    """Two requests without an adapter one after the other: decode steps of one row, fourteen tokens in all."""
    for i in range(2):
        cases.try_in(engine, [Case(cases.prompts[i], cases.stack([]), 7)])


def test_a_bucket_that_finds_no_memory_is_tried_again_and_the_others_stay(
    cases: Cases, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs_module, "PATIENCE", 3)
    engine = cases.engine(max_batch_tokens=64)
    none = torch.OutOfMemoryError("no memory for another graph")
    capture = FailingCapture({3: none, 4: none})
    graphs = add_graphs(engine, capture, rows=4)
    graphs.prepare()  # for four and for two rows; for one it fails
    assert graphs.buckets == [(2, 0), (4, 0)]
    with caplog.at_level(logging.WARNING):
        serve_twice(engine, cases)
    # Again after three steps and after six more; until then the next larger graph served them.
    assert capture.tries == 5
    assert capture.steps == engine.kinds.count("decode") == 12
    assert graphs.buckets == [(1, 0), (2, 0), (4, 0)]
    stats = engine.stats()
    assert (stats.cuda_graphs, stats.cuda_graph_failures) == (3, 2)


def test_a_bucket_without_memory_is_given_up_after_some_tries(
    cases: Cases, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs_module, "PATIENCE", 1)
    engine = cases.engine(max_batch_tokens=64)
    capture = FailingCapture(dict.fromkeys(range(2, 99), torch.OutOfMemoryError("no memory for another graph")))
    graphs = add_graphs(engine, capture, rows=2)
    with caplog.at_level(logging.WARNING):
        graphs.prepare()
        serve_twice(engine, cases)
    assert capture.tries == 1 + graphs_module.TRIES
    assert graphs.buckets == [(2, 0)]
    assert [r.message for r in caplog.records if "CUDA graph" in r.message] == [
        "no CUDA graph for steps of 1 rows and 0 rank rows; it is tried again later: no memory for another graph"
    ]


@pytest.mark.parametrize(
    ("error", "tries"), [(RuntimeError("it cannot be captured"), 4), (CaptureBroken("half-way"), 3)]
)
def test_a_bucket_that_cannot_be_captured_is_given_up(
    cases: Cases, error: RuntimeError, tries: int, caplog: pytest.LogCaptureFixture
) -> None:
    """What broke half-way ends all captures, but no graph that there is."""
    engine = cases.engine(max_batch_tokens=64)
    capture = FailingCapture({3: error})
    graphs = add_graphs(engine, capture, rows=4)
    with caplog.at_level(logging.WARNING):
        graphs.prepare()
        serve_twice(engine, cases)
        cases.try_in(engine, [Case(cases.prompts[0], cases.stack([("rs", 1.0)]), 5)])
    assert capture.tries == tries
    assert {(2, 0), (4, 0)} == {key for key in graphs.buckets if not key[1]}
    assert any(ranks for _, ranks in graphs.buckets) == (tries == 4)
    assert capture.steps >= 12
    assert len([r for r in caplog.records if "CUDA graph" in r.message]) == 1


def test_a_replay_waits_for_what_a_run_before_a_failed_capture_has_queued(monkeypatch: pytest.MonkeyPatch) -> None:
    """They write to the same buffers, from two streams."""

    class Stream:
        def __init__(self) -> None:
            self.waits: list[Stream] = []

        def wait_stream(self, other: Stream) -> None:
            self.waits.append(other)

    serving, capturing = Stream(), Stream()
    monkeypatch.setattr(torch.cuda, "Stream", lambda device, priority: capturing)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: serving)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", lambda mode: None)
    runs: list[int] = []

    def step() -> None:
        runs.append(len(runs))
        if len(runs) == 2:
            raise torch.OutOfMemoryError("in the second run")

    with pytest.raises(torch.OutOfMemoryError):
        CudaCapture(torch.device("cuda", 0)).capture(step)
    assert capturing.waits == [serving]
    assert serving.waits == [capturing]


def test_only_the_segments_of_a_pool_count_as_its_memory() -> None:
    """What other pools and processes take while graphs are captured is not theirs."""
    segments = [
        {"segment_pool_id": (0, 0), "total_size": 1 << 30},
        {"segment_pool_id": (0, 3), "total_size": 2 << 20},
        {"segment_pool_id": (0, 4), "total_size": 1 << 22},
        {"segment_pool_id": (0, 3), "total_size": 5 << 20},
    ]
    assert pool_bytes(segments, (0, 3)) == 7 << 20


@pytest.mark.slow
def test_a_model_that_waits_for_the_device_runs_without(cases: Cases, caplog, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """As some do, to stretch their positions for long contexts."""
    engine = cases.engine(max_batch_tokens=64)
    graphs, forward = add_graphs(engine), engine.base.forward

    def looks(positions, *args, **options):  # type: ignore[no-untyped-def]
        assert int(positions.max()) < 256
        return forward(positions, *args, **options)

    monkeypatch.setattr(engine.base, "forward", looks)
    cases.try_in(engine, cases.draw(Random(1), 5))
    assert graphs.count == 0
    assert graphs.failures == len(graphs._failed)
    assert "waits for the device" in caplog.text


def test_memory_for_graphs_is_left_before_the_cache_is_sized(cases: Cases, monkeypatch: pytest.MonkeyPatch) -> None:
    base = cases.reference.base
    wanted = graph_bytes(base, 64, 128)
    assert wanted > graph_bytes(base, 1, 128) > graph_bytes(base, 1, 1) > 0
    monkeypatch.setattr(memory, "device_memory", lambda device: (10 * wanted, 10 * wanted))
    gpu = torch.device("cuda")
    without, with_ = (plan_memory(EngineSettings(), gpu, 1000, 100, graphs) for graphs in (0, wanted))
    assert (without.kv_pages - with_.kv_pages) * 1000 == pytest.approx(wanted, abs=wanted / 4 + 2000)
    assert without.kv_pages > with_.kv_pages


def test_what_torch_keeps_cached_is_free_for_the_kv_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """A first start converts the base, and has as large a cache as the next."""
    free = {"now": 1 << 30}
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: free.update(now=8 << 30))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free["now"], 16 << 30))
    plan = plan_memory(EngineSettings(adapter_memory=0), torch.device("cuda"), 1 << 20, 1 << 10)
    assert plan.kv_pages == int((8 << 30) * 0.85) >> 20


def test_no_graphs_on_a_host(cases: Cases) -> None:
    assert cases.reference.runner.graphs is None
    stats = cases.reference.stats()
    assert stats.cuda_graphs is None
    assert "graphs" not in stats.memory
    assert set(RANKS) == set(cases.versions)
