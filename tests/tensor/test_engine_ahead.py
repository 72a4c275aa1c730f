"""Steps that are launched before the tokens of those before are handled: the same answers, whatever happens between."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from loramux_server.core.backend import GenerateCommand, ScoreCommand, TokenEvent
from loramux_server.core.errors import Code
from loramux_server.core.jobs import TrainSpec
from loramux_server.core.types import FinishReason, Grammar, GrammarKind
from loramux_server.engine.execution import sampler
from loramux_server.engine.transport.protocol import AbortCommand, StatsCommand
from tests.engine import Engine, check_tokens, command, embedding, rows
from tests.examples import examples
from tests.rows import train_command
from tests.tensor.engine_cases import STACKS, TOKENS, Case, Cases, check_empty, make_cases
from tests.tensor.scarce import on_device

SEEDS = st.integers(0, 2**32 - 1)
FEW = examples(12, suppress_health_check=[HealthCheck.function_scoped_fixture])
NUMBERS = itertools.count()
"""Numbers the requests of all storms."""
PARTS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.7, "seed": 5},
    {"temperature": 1.5, "seed": 6, "top_k": 8},
    {"temperature": 0.3, "seed": 7, "top_p": 0.8, "min_p": 0.01},
    {"repetition_penalty": 1.3},
    {"frequency_penalty": 0.5, "presence_penalty": 0.2, "temperature": 0.5, "seed": 8},
    {"logprobs": 3},
    {"logprobs": 2, "temperature": 1.0, "seed": 9},
    {"min_tokens": 20, "logit_bias": ((7, 3.0),), "ignore_eos": False},
    {"stop_token_ids": (7, 8), "logit_bias": ((7, 2.0), (8, 2.0)), "temperature": 1.5, "seed": 10},
]


@pytest.fixture(scope="module")
def cases(tiny_base, make_adapter, tmp_path_factory) -> Iterator[Cases]:  # type: ignore[no-untyped-def]
    made = make_cases(tiny_base("llama"), tmp_path_factory.mktemp("ahead"), make_adapter)
    yield made
    made.close()


@pytest.fixture(scope="module")
def engines(cases: Cases) -> dict[str, Engine]:
    """All of them go ahead; ``behind`` does not."""
    on: dict[str, Any] = {"async_scheduling": "on"}
    return {
        "behind": cases.engine(async_scheduling="off", speculate="off"),
        "roomy": cases.engine(**on, speculate="off"),
        "drafting": cases.engine(**on),
        "tight": cases.engine(**on, kv_pages=14, max_batch_tokens=24, adapter_rows=13),
    }


@pytest.fixture
def ahead(engines: dict[str, Engine]) -> Engine:
    return engines["roomy"]


def answers(engine: Engine, commands: list[GenerateCommand]) -> dict[str, Any]:
    engine.run(*commands)
    check_empty(engine)
    found = {}
    for one in commands:
        assert engine.failure(one.id) is None, engine.failure(one.id)
        events = [o.payload for o in engine.outputs[one.id] if isinstance(o.payload, TokenEvent)]
        found[one.id] = engine.tokens(one.id), events[-1].finish_reason, [e.logprobs for e in events]
    return found


def forget(engine: Engine, id: str) -> None:
    """Forget what a request was answered, as whoever cancels it does."""
    for told in (engine.outputs, engine.logits, engine._positions, engine._rows):
        told.pop(id, None)


# -- the same answers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["roomy", "drafting"])
@pytest.mark.parametrize("together", [True, False])
def test_every_setting_gives_the_same_answer(
    cases: Cases, engines: dict[str, Engine], name: str, together: bool
) -> None:
    """Tokens, reasons and log-probabilities are bit for bit those of an engine that handles each step first."""
    stacks = [cases.stack(STACKS[0]), cases.stack(STACKS[3])]
    commands = [
        command(f"{name}-{together}-{i}", cases.prompts[i % 6], 24, stack, **part)
        for i, (part, stack) in enumerate(itertools.product(PARTS, stacks))
    ]
    found: list[dict[str, Any]] = [{}, {}]
    for into, engine in zip(found, (engines["behind"], engines[name]), strict=True):
        for batch in [commands] if together else [[c] for c in commands]:
            into |= answers(engine, batch)
    behind, got = found
    for id, (tokens, reason, logprobs) in behind.items():
        assert got[id][:2] == (tokens, reason)
        if name == "roomy":  # drafts are computed in other batches
            assert got[id][2] == logprobs
    assert {FinishReason.STOP, FinishReason.LENGTH} == {reason for _, reason, _ in behind.values()}


def test_a_token_that_is_drawn_again_replaces_the_devices(
    cases: Cases, engines: dict[str, Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where candidates do not suffice the host finds another token than the step after it was launched with."""
    monkeypatch.setattr(sampler, "CANDIDATES", 2)
    monkeypatch.setattr(sampler._draw, "__defaults__", (2,))
    redrawn = []
    redraw = sampler.Sampling.redraw

    def watched(self, rows):  # type: ignore[no-untyped-def]
        redraw(self, rows)
        redrawn.extend(self.redrawn)

    monkeypatch.setattr(sampler.Sampling, "redraw", watched)
    commands = [
        command(f"redrawn-{i}", cases.prompts[i], 20, cases.stack(STACKS[i]), temperature=3.0, top_p=0.95, seed=i)
        for i in range(6)
    ]
    behind = answers(engines["behind"], commands)
    assert redrawn
    assert answers(engines["roomy"], commands) == behind


@pytest.mark.parametrize("name", ["roomy", "drafting"])
def test_grammars_beside_others(cases: Cases, engines: dict[str, Engine], name: str) -> None:
    grammar = Grammar(GrammarKind.REGEX, "(ab|ba){8}")
    commands = [command(f"{name}-beside-{i}", cases.prompts[i], 30) for i in range(3)]
    commands += [
        replace(command(f"{name}-grammar-{i}", cases.prompts[i], 40, temperature=0.5, seed=i), grammar=grammar)
        for i in range(3)
    ]
    behind, got = answers(engines["behind"], commands), answers(engines[name], commands)
    assert {id: found[:2] for id, found in got.items()} == {id: found[:2] for id, found in behind.items()}


@given(seed=SEEDS)
@FEW
def test_any_batch_gives_what_its_requests_give_alone(cases: Cases, engines: dict[str, Engine], seed: int) -> None:
    random = Random(seed)
    drawn = cases.draw(random, 12)
    for name in ("roomy", "drafting", "tight"):
        cases.try_in(engines[name], drawn, stagger=lambda: random.random() < 0.3)


@given(seed=SEEDS)
@FEW
def test_any_storm_gives_what_its_requests_give_alone(cases: Cases, engines: dict[str, Engine], seed: int) -> None:
    """Arrivals, cancels, deadlines, ids that come again, lost memory, preemptions and swaps in any order."""
    draw = Random(seed)
    engine = engines[draw.choice(["tight", "tight", "roomy", "drafting"])]
    asked: dict[str, Case] = {}
    ended: dict[str, str] = {}
    limited = engine.scheduler.limits

    def turn() -> None:
        engine.submit(StatsCommand(f"turn-{next(NUMBERS)}"))  # so that it waits for nothing
        engine.loop.turn()

    def arrive(id: str) -> None:
        [case] = cases.draw(draw, 1)
        asked[id] = case
        one = command(id, case.prompt, case.max_tokens, case.stack)
        engine.submit(replace(one, seconds_left=draw.choice([0.0, 0.05])) if draw.random() < 0.1 else one)

    for _ in range(40):
        living = [id for id in asked if id not in ended and engine.scheduler.get(id) is not None]
        chance = draw.random()
        if chance < 0.35:
            arrive(f"storm-{next(NUMBERS)}")
        elif chance < 0.45 and living:
            gone = draw.choice(living)
            engine.submit(AbortCommand(gone))
            forget(engine, gone)
            if draw.random() < 0.5:
                arrive(gone)  # at once, while the step that has tokens for the first one is pending
            else:
                del asked[gone]
        elif chance < 0.5:
            [case] = cases.draw(draw, 1)
            engine.submit(
                ScoreCommand(f"score-{next(NUMBERS)}", case.prompt, (5, 6, 7), case.stack, tenant="default"),
                embedding(f"embed-{next(NUMBERS)}", case.prompt, case.stack),
            )
        elif chance < 0.53:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(engine.runner, "run", lambda *_: on_device())
                turn()
        turn()
        engine.scheduler.pages.check()
    engine.finish(*asked)
    while engine.scheduler.sequences or engine.loop.idle_state()["pending"]:
        turn()
    for id, case in asked.items():
        if (failure := engine.failure(id)) is not None:
            assert failure.code in (Code.DEADLINE_EXCEEDED.value, Code.RESOURCE_EXHAUSTED.value), failure
            continue
        check_tokens(engine.tokens(id), cases.alone(case))
    check_empty(engine)
    engine.scheduler.limits = limited


# -- what is launched, and when ---------------------------------------------------------------------------------------


def test_a_step_is_launched_before_the_tokens_of_the_one_before_are_out(
    cases: Cases, ahead: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the host reads tokens once a step: nothing else waits for the device."""
    order: list[str] = []
    reads: list[str] = []

    def noting(into: list[str], name: str, do: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*args: Any) -> Any:
            into.append(name)
            return do(*args)

        return noted

    monkeypatch.setattr(ahead.runner, "run", noting(order, "launch", ahead.runner.run))
    monkeypatch.setattr(ahead.loop._outbox, "_send", noting(order, "tokens", ahead._take))
    for name in ("tolist", "item", "__bool__", "__int__", "__float__"):
        monkeypatch.setattr(torch.Tensor, name, noting(reads, name, getattr(torch.Tensor, name)))
    commands = [
        command(f"order-{i}", cases.prompts[i], 10, temperature=t, seed=i, frequency_penalty=0.1, top_p=0.999)
        for i, t in enumerate((0.0, 0.5, 1.0))
    ]
    ahead.run(*commands)
    assert order == ["launch"] + ["launch", "tokens"] * 9 + ["tokens"]
    assert [name for name in reads if name == "tolist"] == ["tolist"] * 10
    assert set(reads) == {"tolist"}


@pytest.mark.parametrize("stopped", [True, False])
def test_a_stop_is_seen_one_step_late_and_the_limit_is_not(cases: Cases, ahead: Engine, stopped: bool) -> None:
    """The row after a stop token is computed and dropped, without a token; there is none after the last token."""
    [case] = cases.draw(Random(3), 1)
    whole = ahead.generate(case.prompt, TOKENS, case.stack)
    at = next(i for i in range(3, TOKENS) if whole[i] not in whole[:i])
    more: dict[str, Any] = {"stop_token_ids": (whole[at],)} if stopped else {}
    steps = len(ahead.kinds)
    id = f"late-{stopped}"
    ahead.run(command(id, case.prompt, TOKENS if stopped else at + 1, case.stack, **more))
    assert ahead.tokens(id) == whole[: at + 1]
    assert ahead.reason(id) is (FinishReason.STOP if stopped else FinishReason.LENGTH)
    assert len(ahead.kinds) - steps == at + 1 + stopped
    check_empty(ahead)


def test_a_cancel_between_launch_and_tokens(cases: Cases, ahead: Engine) -> None:
    """Its pages are free at once, and a new request under the same id gets no token of the old one."""
    first, second = cases.prompts[0], cases.prompts[1]
    ahead.submit(command("twice", first, 40))
    while len(ahead.tokens("twice")) < 3:
        ahead.loop.turn()
    assert ahead.loop.idle_state()["pending"]
    ahead.submit(AbortCommand("twice"))
    ahead.submit(command("twice", second, 8))
    forget(ahead, "twice")
    ahead.finish("twice")
    case = Case(second, cases.stack([]), 8)
    check_tokens(ahead.tokens("twice"), cases.alone(case))
    check_empty(ahead)


def test_a_launched_step_that_finds_no_memory(cases: Cases, ahead: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tokens of the step before are given out, and everybody goes on in smaller steps."""
    run, failed, limits = ahead.runner.run, [], ahead.scheduler.limits

    def limited(plan, *chosen):  # type: ignore[no-untyped-def]
        if len(plan.work) > 3 and plan.kind == "decode":
            failed.append(len(plan.work))
            on_device()
        return run(plan, *chosen)

    monkeypatch.setattr(ahead.runner, "run", limited)
    cases.try_in(ahead, [Case(cases.prompts[i], cases.stack(STACKS[i])) for i in range(6)])
    assert failed[:2] == [6, 6], "it is tried again when the pending step holds nothing"
    assert ahead.scheduler.limits.max_batch_tokens < 6
    ahead.scheduler.limits = limits


def test_a_job_at_work_keeps_steps_whole(cases: Cases, ahead: Engine, tmp_path: Path) -> None:
    """Its share is measured in their time."""
    ahead.submit(
        train_command("job", TrainSpec(epochs=50), rows(4), output=str(tmp_path / "out")),
        command("beside", cases.prompts[0], 12),
    )
    pending = []
    while not any(o.done for o in ahead.outputs["beside"]):
        ahead.loop.turn()
        if set(ahead.jobs.jobs) - set(ahead.jobs.suspended):
            pending.append(ahead.loop.idle_state()["pending"])
    assert len(pending) > 5
    assert not any(pending)
    ahead.submit(AbortCommand("job"))
    ahead.loop.turn()
    check_tokens(ahead.tokens("beside"), cases.alone(Case(cases.prompts[0], cases.stack([]), 12)))


def test_a_stop_of_the_engine_gives_out_what_is_pending(cases: Cases) -> None:
    engine = cases.engine(async_scheduling="on", speculate="off")
    engine.submit(command("open", cases.prompts[0], 40))
    while len(engine.tokens("open")) < 3:
        engine.loop.turn()
    engine.close()
    assert len(engine.tokens("open")) == 5, "that of the pending step, and that of the turn in progress"
    failure = engine.failure("open")
    assert failure is not None
    assert failure.code == Code.UNAVAILABLE.value
    assert engine.loop.idle_state()["pending"] == 0


def test_steps_take_the_time_from_token_to_token(cases: Cases, ahead: Engine) -> None:
    """The time of steps that overlap is not counted twice."""
    before = sum(seconds for _, seconds in ahead.stats().steps.values())
    started = time.monotonic()
    ahead.run(command("timed", cases.prompts[0], TOKENS))
    elapsed = time.monotonic() - started
    taken = sum(seconds for _, seconds in ahead.stats().steps.values()) - before
    assert 0 < taken <= elapsed
