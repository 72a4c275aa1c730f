"""Greedy output is the same alone, in a mixed batch, in chunks, after preemption and with a prefix hit."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from loramux_server.core.backend import TokenEvent
from tests.engine import Engine, command
from tests.examples import examples, few
from tests.tensor.engine_cases import STACKS, TOKENS, Case, Cases, check_empty, make_cases

SEEDS = st.integers(0, 2**32 - 1)
FEW = examples(6, suppress_health_check=[HealthCheck.function_scoped_fixture])
MANY = examples(20, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module", params=few(["llama", "mistral"]))
def cases(request, tiny_base, make_adapter, tmp_path_factory) -> Iterator[Cases]:  # type: ignore[no-untyped-def]
    made = make_cases(tiny_base(request.param), tmp_path_factory.mktemp("batch"), make_adapter)
    yield made
    made.close()


@pytest.fixture(scope="module")
def engines(cases: Cases) -> dict[str, Engine]:
    return {
        "roomy": cases.engine(),
        "chunked": cases.engine(max_batch_tokens=7),
        "few pages": cases.engine(kv_pages=8),
        "few pages, chunked": cases.engine(kv_pages=7, max_batch_tokens=24),
        "two at a time": cases.engine(max_running=2),
        "few adapters": cases.engine(adapter_rows=13),
    }


def try_everywhere(cases: Cases, engines: dict[str, Engine], seed: int) -> None:
    random = Random(seed)
    drawn = cases.draw(random, 16)
    for engine in engines.values():
        cases.try_in(engine, drawn, stagger=lambda: random.random() < 0.3)


@given(seed=SEEDS)
@FEW
def test_any_batch_gives_what_its_requests_give_alone(cases: Cases, engines: dict[str, Engine], seed: int) -> None:
    try_everywhere(cases, engines, seed)


@pytest.mark.slow
def test_a_batch_of_32_mixed_stacks(cases: Cases, engines: dict[str, Engine]) -> None:
    """All of them in one step, which the engine is seen to do."""
    engine, together = engines["roomy"], []
    schedule = engine.scheduler.schedule
    engine.scheduler.schedule = lambda: together.append(schedule()) or together[-1]  # type: ignore[method-assign,func-returns-value]
    prompts = cases.prompts * 3
    cases.try_in(engine, [Case(prompts[i], cases.stack(STACKS[i % len(STACKS)])) for i in range(32)])
    engine.scheduler.schedule = schedule  # type: ignore[method-assign]
    assert max(len(plan.work) for plan in together if plan.kind == "decode") == 32


@pytest.mark.slow
@pytest.mark.timeout(1800)
@given(seed=SEEDS)
@MANY
def test_any_batch_at_length(cases: Cases, engines: dict[str, Engine], seed: int) -> None:
    try_everywhere(cases, engines, seed)


@pytest.mark.parametrize("name", ["few pages", "few pages, chunked"])
def test_preempted_requests_give_what_they_give_alone(cases: Cases, engines: dict[str, Engine], name: str) -> None:
    """Prompts of one page each fill the cache, and every answer needs a second page."""
    engine = engines[name]
    before = engine.scheduler.preemptions
    cases.try_in(engine, [Case(cases.prompts[i][:14], cases.stack(entries)) for i, entries in enumerate(STACKS)])
    assert engine.scheduler.preemptions > before


def test_the_engines_are_put_under_the_pressure_they_are_for(cases: Cases, engines: dict[str, Engine]) -> None:
    for seed in range(20):
        try_everywhere(cases, engines, seed)
        evictions = engines["few adapters"].runner.bank.evictions
        if evictions > 5 and all(e.scheduler.pages.hit_tokens > 0 for e in engines.values()):
            return
    raise AssertionError(
        f"{evictions} evictions, prefix hits {[e.scheduler.pages.hit_tokens for e in engines.values()]}"
    )


def test_a_prefix_hit_changes_nothing(cases: Cases, engines: dict[str, Engine]) -> None:
    engine = engines["roomy"]
    for entries in STACKS:
        case = Case(cases.prompts[0], cases.stack(entries))
        engine.scheduler.pages.clear_cached()
        for turn in range(2):
            cases.try_in(engine, [case])
            cached = cached_tokens(engine, next(reversed(engine.outputs)))
            assert cached == turn * (len(case.prompt) - 1) // 16 * 16


def cached_tokens(engine: Engine, id: str) -> int:
    payload = engine.outputs[id][0].payload
    assert isinstance(payload, TokenEvent)
    return payload.cached_tokens


@pytest.mark.slow
def test_samples_depend_on_their_seed_alone(cases: Cases, engines: dict[str, Engine]) -> None:
    """Seeded requests alone, then in a batch with greedy mates, in chunks and after preemption: the same tokens."""
    sampling = [
        {"temperature": 0.8, "seed": 1},
        {"temperature": 1.0, "top_p": 0.9, "seed": 2},
        {"temperature": 1.3, "top_k": 20, "seed": 3, "repetition_penalty": 1.2},
        {"temperature": 1.0, "min_p": 0.05, "seed": 2, "presence_penalty": 0.5},
    ]
    stacks = [cases.stack(entries) for entries in (STACKS[0], STACKS[3])]
    wanted = [(cases.prompts[i], stack, s) for i, stack in enumerate(stacks) for s in sampling]
    alone = [cases.reference.generate(p, TOKENS, stack, **s) for p, stack, s in wanted]
    for engine in engines.values():
        ids = [f"sampled-{i}" for i in range(len(wanted))]
        for id, (prompt, stack, s) in zip(ids, wanted, strict=True):
            engine.submit(command(id, prompt, TOKENS, stack, **s), command(f"{id}-mate", prompt[::-1], 3, stack))
        engine.finish(*ids, *(f"{id}-mate" for id in ids))
        assert [engine.tokens(id) for id in ids] == alone
        check_empty(engine)
    same = [cases.reference.generate(cases.prompts[0], TOKENS, temperature=1.0, seed=s) for s in (5, 5, 6)]
    assert same[0] == same[1] != same[2]


def test_without_a_seed_samples_differ(cases: Cases) -> None:
    drawn = {tuple(cases.reference.generate(cases.prompts[0], TOKENS, temperature=2.0)) for _ in range(4)}
    assert len(drawn) > 1


def test_scores_are_the_same_in_chunks_and_after_preemption(cases: Cases, engines: dict[str, Engine]) -> None:
    stack = cases.stack(STACKS[3])
    prompt, continuation = cases.prompts[0], cases.prompts[1]
    alone = cases.reference.score(prompt, continuation, stack)
    for engine in engines.values():
        mates = [command(f"mate-{len(engine.outputs)}-{i}", cases.prompts[i], TOKENS) for i in range(3)]
        engine.submit(*mates)
        got = engine.score(prompt, continuation, stack)
        engine.finish(*(m.id for m in mates))
        assert torch.allclose(torch.tensor(got.logprobs), torch.tensor(alone.logprobs), atol=1e-4)
        check_empty(engine)
