"""Steps with prompts as graphs give what they give without: chunks, prefix hits, scores, drafts and stacks, padded.

As in test_graphs a tape stands in for CUDA and plain code for its attention kernel.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from loramux_server.engine.execution import graph_families
from loramux_server.engine.execution.graph_families import StepGraphs
from loramux_server.model import kv
from loramux_server.model.attention import dense_attention
from loramux_server.model.kv import KVPool, KVShape, PagedAttention, Span, StaticAttention
from tests.engine import Engine, command
from tests.examples import few
from tests.tensor.engine_cases import STACKS, Case, Cases, make_cases
from tests.tensor.graph_checks import compute_both_ways
from tests.tensor.tape import TapeCapture
from tests.tensor.test_graphs import TOLERANCE, only_torch  # noqa: F401

CPU = torch.device("cpu")


def each_row_alone(q, keys, values, starts, used, table, longest_q, longest_k, *, scale, window) -> Tensor:  # type: ignore[no-untyped-def]
    """The kernel's contract without a look at any value; rows of no sequence are NaN, as memory may be."""
    rows = torch.arange(len(q))
    owner = torch.searchsorted(starts[1:], rows, right=True)
    owned = owner < len(used)
    owner = owner.clamp(max=len(used) - 1)
    position = used[owner] - starts[owner + 1] + rows
    ks, vs = (x[table.long()].flatten(1, 2)[owner].transpose(1, 2) for x in (keys, values))
    assert ks.shape[2] <= longest_k
    assert longest_q <= len(q)
    places = torch.arange(ks.shape[2])
    mask = places <= position[:, None]
    if window is not None:
        mask &= position[:, None] - places < window
    # What is masked is never read, so NaN in it does no harm.
    ks, vs = (x.masked_fill(~mask[:, None, :, None], 0) for x in (ks, vs))
    out = dense_attention(q[:, :, None], ks, vs, scale=scale, softcap=None, mask=mask[:, None, None, :]).squeeze(2)
    return torch.where(owned[:, None, None], out, torch.nan)


@pytest.fixture(autouse=True)
def kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv, "paged_kernel", each_row_alone)
    compute_both_ways(monkeypatch, lambda got, expected: float((got - expected).abs().max()) < TOLERANCE)


@pytest.fixture(scope="module")
def cases(tiny_base, make_adapter, tmp_path_factory) -> Iterator[Cases]:  # type: ignore[no-untyped-def]
    made = make_cases(tiny_base("llama"), tmp_path_factory.mktemp("mixed"), make_adapter)
    yield made
    made.close()


def add_graphs(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, tokens: int, rows: int = 16
) -> tuple[StepGraphs, TapeCapture]:
    """All families; the scratch page is emptied after each step, because eager steps here gather it."""
    capture, runner = TapeCapture(), engine.runner
    graphs = StepGraphs(engine.base, runner.kv, runner.bank, rows, tokens, capture)
    run = graphs.run

    def checked(*given):  # type: ignore[no-untyped-def]
        logits = run(*given)
        held = [x[:, :-1] for x in (runner.kv.keys, runner.kv.values)]
        assert all(x.isfinite().all() for x in held), "padding wrote to a page of a sequence"
        runner.kv.keys[:, -1] = runner.kv.values[:, -1] = 0
        return logits

    monkeypatch.setattr(graphs, "run", checked)
    runner.graphs = graphs
    return graphs, capture


@pytest.mark.parametrize("arch", few(["qwen3", "mistral", "gemma3_text"]))
def test_chunks_prefix_hits_and_stacks(arch: str, tiny_base, make_adapter, tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """Prompts longer than a step, prompts that share their heads, all kinds of stacks, beside answers."""
    cases = make_cases(tiny_base(arch), tmp_path, make_adapter)
    engine = cases.engine(kv_pages=48, max_batch_tokens=24)
    _, capture = add_graphs(engine, monkeypatch, tokens=24)
    draw = Random(4)
    repeated = Case(cases.prompts[0], cases.stack(STACKS[1]), 4)
    for _ in range(2):
        wanted = [repeated, *cases.draw(draw, 3)]
        cases.try_in(engine, wanted, stagger=lambda: draw.random() < 0.5)
    assert engine.scheduler.pages.hit_tokens
    assert {"prefill", "decode"} == set(engine.kinds)
    assert capture.steps == len(engine.kinds)
    cases.close()


def test_scores_and_steps_that_fit_no_graph(cases: Cases, monkeypatch: pytest.MonkeyPatch) -> None:
    """A score wants a row of logits for every token: with more of them than sequences the step is eager."""
    engine = cases.engine(kv_pages=48, max_batch_tokens=48)
    _, capture = add_graphs(engine, monkeypatch, tokens=48)
    prompt, stack = cases.prompts[6], cases.stack(STACKS[3])
    for first, eager in ((len(prompt) - 6, 0), (3, 1)):
        before = capture.steps
        result = engine.score(prompt[:first], prompt[first:], stack)
        expected = cases.reference.score(prompt[:first], prompt[first:], stack)
        got, wanted = torch.tensor(result.logprobs), torch.tensor(expected.logprobs)
        torch.testing.assert_close(got, wanted, atol=TOLERANCE, rtol=0)
        assert capture.steps - before == 1 - eager


def test_drafts_beside_a_prompt(cases: Cases, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of a draft are sequences of their own to attention, and each has its logits."""
    engine = cases.engine(kv_pages=48, max_batch_tokens=48, speculate="ngram")
    _, capture = add_graphs(engine, monkeypatch, tokens=48)
    drafter = engine.scheduler.drafter
    assert drafter is not None
    asked = Case(cases.prompts[0], cases.stack([]), 12)
    right = [token for token, _ in cases.alone(asked)]

    def draft(seqs, rows, most):  # type: ignore[no-untyped-def]
        """Two tokens that are right."""
        mine = [s for s in seqs if s.id == "drafted"]
        return {s.id: tuple(right[s.num_output :][: min(2, most[s.id])]) for s in mine}

    monkeypatch.setattr(drafter, "draft", draft)
    engine.submit(command("drafted", asked.prompt, 12, asked.stack))
    for i in range(4):
        engine.loop.turn()
        engine.submit(command(f"other{i}", cases.prompts[1][i:], 3, cases.stack(STACKS[1])))
    engine.finish("drafted", *(f"other{i}" for i in range(4)))
    assert engine.tokens("drafted") == right
    assert drafter.accepted
    assert capture.steps == len(engine.kinds)


def test_padding_stays_with_itself() -> None:
    """Whatever rows of no sequence hold, they write to the scratch page, and others' results are those without them."""
    draw = torch.Generator().manual_seed(0)
    pools = [KVPool(KVShape(1, 2, 8, page_size=4), 6, CPU, torch.float32) for _ in range(2)]
    for x, y in ((pools[0].keys, pools[1].keys), (pools[0].values, pools[1].values)):
        x.copy_(torch.randn(x.shape, generator=draw))
        y.copy_(x)
    spans = [Span(4, 1, (3, 1)), Span(2, 5, (0, 5)), Span(0, 3, (2,))]
    count = sum(s.length for s in spans)
    attention = StaticAttention(pools[0], 16, 5, 3)
    for _ in range(2):  # filled again over what another step left
        attention.fill([Span(0, 7, (4, 3))])
        attention.fill(spans)
    q, k, v = (torch.full((16, n, 8), torch.nan) for n in (4, 2, 2))
    for x in (q, k, v):
        x[:count] = torch.randn(count, *x.shape[1:], generator=draw)
    got = attention.attend(0, q, k, v, scale=0.3, window=None, softcap=None)
    expected = PagedAttention(pools[1], spans).attend(
        0, q[:count], k[:count], v[:count], scale=0.3, window=None, softcap=None
    )
    torch.testing.assert_close(got[:count], expected)
    assert got[count:].isnan().all()
    assert torch.equal(pools[0].keys[:, :-1], pools[1].keys[:, :-1])
    assert torch.equal(pools[0].values[:, :-1], pools[1].values[:, :-1])


def test_a_short_context_has_graphs_of_its_own(cases: Cases, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step takes the family of the shortest context that holds its sequences."""
    monkeypatch.setattr("loramux_server.engine.execution.graph_families.CONTEXTS", (32, 4096))
    engine = cases.engine(kv_pages=48, max_batch_tokens=48)
    graphs, _ = add_graphs(engine, monkeypatch, tokens=48)
    assert len(graphs.families) == 3  # prompts, decode, decode of up to 32 tokens
    cases.try_in(engine, [Case(cases.prompts[0][:20], cases.stack([]), 14)])
    prompts, whole, short = graphs.families
    assert [family.count for family in (prompts, whole, short)] == [1, 1, 1]


def test_all_is_prepared_at_the_start(cases: Cases) -> None:
    engine, capture = cases.engine(kv_pages=48, max_batch_tokens=48), TapeCapture()
    runner = engine.runner
    graphs = StepGraphs(engine.base, runner.kv, runner.bank, 4, 200, capture)
    graphs.prepare()
    assert [family.buckets for family in graphs.families] == [
        [(128, 0), (200, 0)],
        [(1, 0), (2, 0), (4, 0)],
    ]
    assert graphs.count == 5
    assert graphs.failures == 0


def test_what_takes_too_long_at_the_start_is_captured_when_a_step_needs_it(
    cases: Cases, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The largest first, for its memory; then the graphs of steps that decode, which most steps are."""
    engine = cases.engine(kv_pages=48, max_batch_tokens=48)
    now = iter(range(99))
    monkeypatch.setattr(graph_families, "time", SimpleNamespace(monotonic=lambda: float(next(now))))
    monkeypatch.setattr(graph_families, "START_SECONDS", 3.0)
    graphs, _ = add_graphs(engine, monkeypatch, 200, 4)
    graphs.prepare()
    assert [family.buckets for family in graphs.families] == [[(200, 0)], [(2, 0), (4, 0)]]
    assert "captured when steps first need them" in caplog.text
    cases.try_in(engine, [Case(cases.prompts[0], cases.stack([]))])
    assert (1, 0) in graphs.families[1].buckets
