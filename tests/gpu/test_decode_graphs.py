"""Captured decode steps on a CUDA device: against the same steps uncaptured, and against transformers with PEFT."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
import torch
from torch import Tensor

from loramux_server.engine.execution.capture import CudaCapture
from loramux_server.engine.execution.graph_families import StepGraphs, graph_bytes
from tests.engine import Engine, command
from tests.tensor.engine_cases import STACKS, Case, Cases, make_cases
from tests.tensor.graph_checks import compute_both_ways

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 0),
        reason="needs a CUDA device with FlashAttention",
    ),
]
ON_GPU = {"device": "cuda", "dtype": "bfloat16", "kv_cache_memory": 256 << 20}


def alike(got: Tensor, expected: Tensor, share: float = 2e-2) -> bool:
    """As far as bfloat16 goes: the mean difference is a small share of how far logits spread."""
    return float((got.float() - expected.float()).abs().mean()) < share * float(expected.float().std())


@pytest.fixture(scope="module", params=["llama", "qwen3", "mistral"])
def cases(request, tiny_base, make_adapter, tmp_path_factory) -> Iterator[Cases]:  # type: ignore[no-untyped-def]
    made = make_cases(tiny_base(request.param), tmp_path_factory.mktemp("gpu"), make_adapter)
    yield made
    made.close()


def run_all(engine: Engine, wanted: list[Case], prefix: str) -> list[str]:
    ids = [f"{prefix}{i}" for i in range(len(wanted))]
    for id, case in zip(ids, wanted, strict=True):
        engine.submit(command(id, case.prompt, case.max_tokens, case.stack))
    engine.finish(*ids)
    assert [engine.failure(id) for id in ids] == [None] * len(ids)
    return ids


def test_replay_equals_the_eager_step_and_the_oracle(cases: Cases, oracle_of, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    compute_both_ways(monkeypatch, alike)
    engine = cases.engine(**ON_GPU)
    assert engine.runner.graphs is not None
    at_start = engine.runner.graphs.count
    assert at_start
    wanted = [Case(cases.prompts[i], cases.stack(STACKS[i % len(STACKS)])) for i in range(11)]
    folders = {version.digest: cases.folders[name] for name, version in cases.versions.items()}
    for prefix in ("first", "again"):
        for id, case in zip(run_all(engine, wanted, prefix), wanted, strict=True):
            spec = [(folders[e.adapter.digest], e.weight) for e in case.stack.entries]
            expected = oracle_of(cases.base).logits([*case.prompt, *engine.tokens(id)], spec)[len(case.prompt) - 1 : -1]
            assert alike(torch.stack(engine.logits[id]).cpu(), expected, share=1e-1)
    assert engine.runner.graphs.count >= at_start
    stats = engine.stats()
    assert stats.cuda_graphs == engine.runner.graphs.count
    info = engine.info
    assert 0 < stats.memory["graphs"] <= graph_bytes(engine.base, info.max_running, info.max_batch_tokens)


def test_adapters_swapped_in_and_moved_under_a_graph(cases: Cases, monkeypatch: pytest.MonkeyPatch) -> None:
    compute_both_ways(monkeypatch, alike)
    row = cases.reference.runner.bank._row_bytes // 2  # of float32, and here they are 16 bits
    engine = cases.engine(**ON_GPU, adapter_memory=12 * row)
    assert engine.runner.graphs is not None
    draw = Random(2)
    for i in range(8):
        run_all(engine, cases.draw(draw, 6, STACKS[:6]), f"{i}-")
    assert engine.runner.bank.evictions
    assert isinstance(engine.runner.graphs, StepGraphs)
    assert any(ranks for family in engine.runner.graphs.families for _, ranks in family.buckets)


def test_a_step_that_waits_leaves_a_working_engine(cases: Cases, monkeypatch: pytest.MonkeyPatch) -> None:
    """A capture that fails: eager from then on, on the stream that was current before."""
    engine = cases.engine(**ON_GPU)
    forward, stream = engine.base.forward, torch.cuda.current_stream()

    def looks(positions, *args, **options):  # type: ignore[no-untyped-def]
        assert int(positions.max()) < 256
        return forward(positions, *args, **options)

    monkeypatch.setattr(engine.base, "forward", looks)
    runner = engine.runner
    graphs = StepGraphs(engine.base, runner.kv, runner.bank, 4, 128, CudaCapture(engine.base.device))
    graphs.prepare()
    runner.graphs = graphs
    case = Case(cases.prompts[0], cases.stack([("rs", 1.0)]), 6)
    (id,) = run_all(engine, [case], "looks")
    assert graphs.count == 0
    assert torch.cuda.current_stream() == stream
    assert torch.cuda.get_sync_debug_mode() == 0
    monkeypatch.undo()
    (again,) = run_all(engine, [case], "after")
    assert engine.tokens(again) == engine.tokens(id)


def test_the_flag_turns_them_off(tiny_base, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    engine = Engine(tiny_base("llama"), tmp_path / "state", **ON_GPU, cuda_graphs=False)
    assert engine.runner.graphs is None
    assert engine.stats().cuda_graphs is None
    assert len(engine.generate([5, 6, 7], 4)) == 4
    engine.close()
