"""What goes wrong with one request stays with it, and whatever ends, nothing is left behind."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count as counted
from pathlib import Path
from random import Random

import pytest
import torch

from loramux_server.core.backend import EmbedCommand, GenerateCommand, ScoreCommand, ScoreResult
from loramux_server.core.errors import Code
from loramux_server.core.jobs import TrainRow, TrainSpec
from loramux_server.engine.residency import cache
from loramux_server.engine.residency.cache import HostCache
from loramux_server.engine.transport.protocol import (
    AbortCommand,
    LoadCommand,
    PinCommand,
    StatsCommand,
    UnloadCommand,
)
from loramux_server.engine.transport.wire import Unreadable
from tests.engine import Engine, check_tokens, command, embedding, prompts
from tests.rows import train_command
from tests.tensor.engine_cases import STACKS, Case, Cases, check_empty, make_cases
from tests.tensor.scarce import Scarce, on_device, on_host

STORMS = counted()
"""Numbers the requests of all storms."""


@pytest.fixture(scope="module")
def cases(tiny_base, make_adapter, tmp_path_factory) -> Iterator[Cases]:  # type: ignore[no-untyped-def]
    made = make_cases(tiny_base("llama"), tmp_path_factory.mktemp("faults"), make_adapter)
    yield made
    made.close()


@pytest.fixture(scope="module")
def tight(cases: Cases) -> Engine:
    """Few pages, so that each is soon somebody else's."""
    return cases.engine(kv_pages=14, max_batch_tokens=40)


def run_all(engine: Engine, cases: Cases, wanted: list[tuple[str, Case]]) -> None:
    for id, case in wanted:
        engine.submit(command(id, case.prompt, case.max_tokens, case.stack))
    engine.finish(*(id for id, _ in wanted))


# -- values that are not numbers --------------------------------------------------------------------------------------


def test_a_broken_adapter_fails_its_request_alone(cases: Cases, tight: Engine) -> None:
    mates = [Case(cases.prompts[i], cases.stack(STACKS[i]), 8) for i in range(5)]
    broken = [
        Case(cases.prompts[0], cases.stack([("broken", 1.0)])),
        Case(cases.prompts[5], cases.stack([("broken", 0.5), ("all", 1.0)])),
    ]
    wanted = [(f"m{i}", c) for i, c in enumerate(mates)]
    wanted[1:1] = [(f"b{i}", c) for i, c in enumerate(broken)]
    run_all(tight, cases, wanted)
    for i in range(2):
        failure = tight.failure(f"b{i}")
        assert failure is not None
        assert (failure.code, failure.reason) == (Code.FAILED_PRECONDITION.value, "LOGITS_NOT_FINITE")
        assert tight.tokens(f"b{i}") == []
    for i, case in enumerate(mates):
        check_tokens(tight.tokens(f"m{i}"), cases.alone(case))
    check_empty(tight)


@pytest.mark.slow
def test_pages_that_held_no_numbers_are_as_good_as_new(cases: Cases, tight: Engine) -> None:
    """A page is read to its end and masked; what a former owner left in it must not pass the mask."""
    for turn in range(3):
        tight.scheduler.pages.clear_cached()
        run_all(
            tight,
            cases,
            [(f"foul{turn}-{i}", Case(cases.prompts[i], cases.stack([("broken", 1.0)]))) for i in range(4)],
        )
        tight.scheduler.pages.clear_cached()
        for i in range(4):
            cases.try_in(tight, [Case(cases.prompts[i][: 5 + 3 * turn], cases.stack(STACKS[i]))])
    assert not tight.runner.kv.keys.isfinite().all(), "the adapter was not broken enough for this test"


def test_a_row_that_breaks_in_the_middle_of_an_answer(cases: Cases, tight: Engine) -> None:
    """NaN in the resident weights while requests run: whoever uses them fails, the others go on."""
    user = Case(cases.prompts[0], cases.stack([("all", 1.0)]), 10)
    mate = Case(cases.prompts[1], cases.stack([("rs", 1.0)]), 10)
    for id, case in (("user", user), ("mate", mate)):
        tight.submit(command(id, case.prompt, 10, case.stack))
    while len(tight.tokens("user")) < 4:
        tight.loop.turn()
    slot = tight.runner.bank.slot(cases.versions["all"].digest)
    tight.runner.bank.a[0][slot.lo] = torch.nan
    tight.finish("user", "mate")
    assert 4 <= len(tight.tokens("user")) < 10
    assert tight.failure("user") is not None
    check_tokens(tight.tokens("mate"), cases.alone(mate))
    tight.runner.bank.drop(cases.versions["all"].digest)
    cases.try_in(tight, [user, mate])


def test_scores_that_are_no_numbers_are_an_error(cases: Cases, tight: Engine) -> None:
    prompt, continuation = cases.prompts[0], cases.prompts[1]
    tight.run(ScoreCommand("s", prompt, continuation, cases.stack([("broken", 1.0)]), tenant="default"))
    failure = tight.failure("s")
    assert failure is not None
    assert failure.reason == "LOGITS_NOT_FINITE"
    check_empty(tight)


# -- memory -----------------------------------------------------------------------------------------------------------


def out_of_memory(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, *, above: int, fail: Callable[[], None] = on_device
) -> list[int]:
    """Steps of more than ``above`` tokens find no memory; gives the sizes of those that failed."""
    run, failed = engine.runner.run, []

    def limited(plan, *chosen):  # type: ignore[no-untyped-def]
        if plan.tokens > above:
            failed.append(plan.tokens)
            fail()
        return run(plan, *chosen)

    monkeypatch.setattr(engine.runner, "run", limited)
    return failed


@pytest.mark.parametrize("fail", [on_device, on_host])
@pytest.mark.slow
def test_a_step_without_memory_is_tried_again_with_less(
    cases: Cases, monkeypatch: pytest.MonkeyPatch, fail: Callable[[], None]
) -> None:
    engine = cases.engine()
    failed = out_of_memory(engine, monkeypatch, above=20, fail=fail)
    cases.try_in(engine, [Case(cases.prompts[i], cases.stack(s)) for i, s in enumerate(STACKS)])
    assert failed == sorted(failed, reverse=True)
    assert failed
    assert engine.scheduler.limits.max_batch_tokens <= 20
    before = len(failed)
    cases.try_in(engine, [Case(cases.prompts[i], cases.stack(s)) for i, s in enumerate(STACKS)])
    assert len(failed) == before
    stats = engine.stats()
    assert stats.out_of_memory == {"errors": before, "micro_batches": 0, "jobs": 0, "steps": before}
    assert stats.step_limits["tokens"] == engine.scheduler.limits.max_batch_tokens


def test_another_error_in_a_step_is_a_defect(cases: Cases, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = cases.engine()

    def defect() -> None:
        raise RuntimeError("a defect")

    out_of_memory(engine, monkeypatch, above=0, fail=defect)
    with pytest.raises(RuntimeError, match="a defect"):
        engine.run(command("none", cases.prompts[0]))


def test_an_adapter_that_finds_no_memory_on_the_device_ends_those_who_need_it(
    cases: Cases, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = cases.engine()
    bank, copy = engine.runner.bank, engine.runner.bank._copy

    def limited(adapter, slot):  # type: ignore[no-untyped-def]
        if adapter.digest == cases.versions["rs"].digest:
            on_host()
        copy(adapter, slot)

    monkeypatch.setattr(bank, "_copy", limited)
    needs = [cases.stack([("rs", 1.0)]), cases.stack([("all", 1.0), ("rs", 0.5)])]
    mates = [Case(cases.prompts[i], cases.stack(STACKS[i]), 8) for i in (0, 1, 4, 5)]
    for i, stack in enumerate(needs):
        engine.submit(command(f"need{i}", cases.prompts[i], 8, stack))
    run_all(engine, cases, [(f"mate{i}", case) for i, case in enumerate(mates)])
    engine.finish("need0", "need1")
    for i in range(2):
        failure = engine.failure(f"need{i}")
        assert failure is not None
        assert failure.code == Code.RESOURCE_EXHAUSTED.value
        assert "no memory to load" in failure.message
    for i, case in enumerate(mates):
        check_tokens(engine.tokens(f"mate{i}"), cases.alone(case))
    check_empty(engine)
    assert cases.versions["rs"].digest not in bank.digests
    monkeypatch.undo()
    cases.try_in(engine, [Case(cases.prompts[i], stack) for i, stack in enumerate(needs)])


def test_a_token_that_alone_finds_no_memory_fails(cases: Cases, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = cases.engine()
    out_of_memory(engine, monkeypatch, above=0)
    engine.run(command("none", cases.prompts[0]))
    failure = engine.failure("none")
    assert failure is not None
    assert failure.code == Code.RESOURCE_EXHAUSTED.value
    check_empty(engine)


def run_with_hog(engine: Engine, cases: Cases, hog: GenerateCommand | ScoreCommand | EmbedCommand) -> None:
    """The hog fails alone; four mates beside it give what they give alone."""
    mates = [Case(cases.prompts[i], cases.stack(STACKS[i]), 8) for i in (0, 1, 4, 5)]
    engine.outputs.clear()
    for i, case in enumerate(mates[:2]):
        engine.submit(command(f"mate{i}", case.prompt, case.max_tokens, case.stack))
    engine.submit(hog)
    for i, case in enumerate(mates[2:], start=2):
        engine.submit(command(f"mate{i}", case.prompt, case.max_tokens, case.stack))
    engine.finish(*(f"mate{i}" for i in range(4)), hog.id)
    failure = engine.failure(hog.id)
    assert failure is not None
    assert (failure.code, failure.reason) == (Code.RESOURCE_EXHAUSTED.value, "OUT_OF_MEMORY")
    assert "no memory left" in failure.message
    for i, case in enumerate(mates):
        check_tokens(engine.tokens(f"mate{i}"), cases.alone(case))
    assert engine.scheduler.limits.max_batch_tokens > 1
    check_empty(engine)


@pytest.mark.parametrize("fail", [on_device, on_host])
def test_sampling_without_memory_is_done_in_smaller_parts(cases: Cases, fail: Callable[[], None]) -> None:
    """Five rows at a time are too many for the search of the largest; nothing is computed again."""
    engine = cases.engine()
    with Scarce("max", lambda logits, *_: logits.shape[0] > 2, fail) as scarce:
        cases.try_in(engine, [Case(cases.prompts[i], cases.stack(s)) for i, s in enumerate(STACKS)])
    assert scarce.failed
    assert engine.scheduler.preemptions == 0
    assert engine.stats().out_of_memory["steps"] == 0


@pytest.mark.parametrize("fail", [on_device, on_host])
def test_a_request_that_cannot_be_sampled_fails_alone(cases: Cases, fail: Callable[[], None]) -> None:
    """The only one that asks for log-probabilities, of one row of logits."""
    engine = cases.engine()
    with Scarce("log_softmax", lambda *_: True, fail):
        run_with_hog(engine, cases, command("hog", cases.prompts[2], 8, logprobs=3))


def test_scores_without_memory_are_computed_in_smaller_parts(cases: Cases) -> None:
    prompt, continuation = cases.prompts[0], cases.prompts[1]
    engine = cases.engine()
    with Scarce("log_softmax", lambda logits, *_: logits.shape[0] > 3) as scarce:
        result = engine.score(prompt, continuation, cases.stack(STACKS[1]))
        assert scarce.failed
    expected = cases.reference.score(prompt, continuation, cases.stack(STACKS[1]))
    assert result.logprobs == pytest.approx(expected.logprobs, abs=1e-5)
    with Scarce("log_softmax", lambda *_: True):
        run_with_hog(engine, cases, ScoreCommand("hog", prompt, continuation, tenant="default"))


def test_an_embedding_without_memory_is_pooled_in_smaller_parts(cases: Cases) -> None:
    prompt = cases.prompts[0]
    engine = cases.engine()
    with Scarce("sum", lambda states, *_: states.shape[0] > 3) as scarce:
        engine.run(embedding("e", prompt))
        assert scarce.failed
    cases.reference.run(embedding("pooled", prompt))
    torch.testing.assert_close(engine.embedding("e"), cases.reference.embedding("pooled"), rtol=1e-5, atol=1e-6)
    with Scarce("sum", lambda *_: True):
        run_with_hog(engine, cases, embedding("hog", prompt))
    with Scarce("linalg_vector_norm", lambda *_: True):  # at the very end, to scale it
        run_with_hog(engine, cases, embedding("hog", prompt))


def test_an_adapter_that_finds_no_host_memory_is_no_defect(cases: Cases, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = cases.engine()
    monkeypatch.setattr(cache, "read_content", lambda *_, **__: on_host())
    engine.run(command("none", cases.prompts[0], 3, cases.stack([("all", 1.0)])))
    failure = engine.failure("none")
    assert failure is not None
    assert failure.code == Code.RESOURCE_EXHAUSTED.value
    assert "no memory to read" in failure.message
    monkeypatch.undo()
    cases.try_in(engine, [Case(cases.prompts[0], cases.stack([("all", 1.0)]), 3)])


def test_a_command_that_finds_no_memory_fails_alone(cases: Cases, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever of it was begun is taken back."""
    engine = cases.engine()
    monkeypatch.setattr(engine.loop, "_memory", lambda training: on_host())
    engine.run(StatsCommand("stats"))
    monkeypatch.setattr(engine.loop._sequences.scores, "open", lambda seq: on_host())
    engine.run(command("none", cases.prompts[0], 3, cases.stack([("all", 1.0)])))
    for id in ("stats", "none"):
        failure = engine.failure(id)
        assert failure is not None
        assert failure.reason == "OUT_OF_MEMORY"
    monkeypatch.undo()
    check_empty(engine)
    cases.try_in(engine, [Case(cases.prompts[0], cases.stack([("all", 1.0)]), 3)])


def test_a_request_larger_than_the_cache_is_refused_and_the_rest_goes_on(cases: Cases, tight: Engine) -> None:
    tight.run(command("large", [3] * 150, 100), command("small", cases.prompts[0], 3))
    failure = tight.failure("large")
    assert failure is not None
    assert failure.reason == "KV_CACHE_TOO_SMALL"
    check_tokens(tight.tokens("small"), cases.alone(Case(cases.prompts[0], cases.stack([]), 3)))


def test_a_full_queue_refuses_and_leaves_nothing(cases: Cases) -> None:
    engine = cases.engine(max_queue=2, max_running=1)
    score = ScoreCommand("score", cases.prompts[0], cases.prompts[1], tenant="default")
    engine.submit(*(command(f"r{i}", cases.prompts[0], 3) for i in range(2)), score, command("late", [3], 1))
    engine.finish("r0", "r1", "score", "late")
    for id in ("score", "late"):
        failure = engine.failure(id)
        assert failure is not None
        assert (failure.reason, failure.retry_after) == ("QUEUE_FULL", 1.0)
    assert engine.failure("r1") is None
    check_empty(engine)


def test_a_second_command_under_an_id_in_use_is_dropped_and_the_first_goes_on(cases: Cases, tight: Engine) -> None:
    """Whatever the second one is: an answer to it would be taken for the end of the first."""
    score = ScoreCommand("twice", cases.prompts[0], cases.prompts[1], tenant="default")
    load = LoadCommand("twice", cases.versions["all"])
    tight.submit(score, score, StatsCommand("twice"), load, UnloadCommand("twice", load.adapter.digest))
    tight.submit(PinCommand("twice", ()), Unreadable("twice", "nonsense"))
    tight.finish("twice")
    for _ in range(5):
        tight.loop.turn() if tight.scheduler.sequences else None
    (only,) = tight.outputs["twice"]
    result = only.payload
    assert isinstance(result, ScoreResult)
    alone = cases.reference.score(score.prompt_ids, score.continuation_ids)
    assert result.logprobs == pytest.approx(alone.logprobs, abs=1e-4)
    check_empty(tight)


# -- commands that the front should not have let through --------------------------------------------------------------

NAN, INF = float("nan"), float("inf")
BAD_SAMPLING: dict[str, dict[str, object]] = {
    "max_tokens": {"max_tokens": 0},
    "temperature": {"temperature": NAN},
    "temperature ": {"temperature": INF},
    "top_p": {"top_p": 0.0, "temperature": 1.0},
    "top_p ": {"top_p": NAN, "temperature": 1.0},
    "top_k": {"top_k": -1, "temperature": 1.0},
    "min_p": {"min_p": 2.0, "temperature": 1.0},
    "repetition_penalty": {"repetition_penalty": 0.0},
    "presence_penalty": {"presence_penalty": 1e300},
    "frequency_penalty": {"frequency_penalty": NAN},
    "logprobs": {"logprobs": 10_000},
    "logprobs ": {"logprobs": -1},
    "logit_bias[99999]": {"logit_bias": ((99_999, 1.0),)},
    "logit_bias[-1]": {"logit_bias": ((3, 1.0), (-1, 1.0))},
    "logit_bias[3]": {"logit_bias": ((3, 1e300),)},
    "temperature  ": {"temperature": 10.5},
    "seed": {"seed": 2**63},
    "min_tokens": {"min_tokens": 4},
    "stop_token_ids": {"stop_token_ids": tuple(range(65))},
    "stop_token_ids[0]": {"stop_token_ids": (384,), "min_tokens": 2},
}


def bad_commands(cases: Cases) -> dict[str, tuple[str, GenerateCommand | ScoreCommand]]:
    """Name -> the field that is told, and a command that would raise in a step, or read what is not its own."""
    good, one = (3, 4, 5), cases.stack([("all", 1.0)])
    twice = replace(one, entries=one.entries * 2)
    found: dict[str, tuple[str, GenerateCommand | ScoreCommand]] = {
        "empty": ("prompt_ids", command("", [])),
        "outside": ("prompt_ids[1]", command("", [3, 384])),
        "negative": ("prompt_ids[0]", command("", [-1, 3])),
        "long": ("prompt_ids", command("", [3] * 250, 10)),
        "weight": ("stack[0].weight", command("", good, 3, cases.stack([("all", NAN)]))),
        "heavy": ("stack[0].weight", command("", good, 3, cases.stack([("all", 100.5)]))),
        "twice": ("stack", command("", good, 3, twice)),
        "deadline": ("seconds_left", replace(command("", good), seconds_left=INF)),
        "nothing to score": ("continuation_ids", ScoreCommand("", good, (), tenant="default")),
        "score outside": ("continuation_ids[0]", ScoreCommand("", good, (10**6,), tenant="default")),
        "score nothing": ("prompt_ids", ScoreCommand("", (), good, tenant="default")),
    }
    for field, settings in BAD_SAMPLING.items():
        found[field] = field.strip(), command("", good, **{"max_tokens": 3, **settings})
    return found


def test_a_bad_command_fails_alone(cases: Cases) -> None:
    """Each beside two that are fine, which are served, and the engine goes on."""
    engine = cases.engine()
    bad = bad_commands(cases)
    mate = Case(cases.prompts[0], cases.stack([("rs", 1.0)]), 4)
    for i, (name, (_, asked)) in enumerate(bad.items()):
        engine.submit(replace(asked, id=name))
        if i % 5 == 0:
            engine.submit(command(f"mate{i}", mate.prompt, 4, mate.stack))
    engine.finish(*bad, *(f"mate{i}" for i in range(0, len(bad), 5)))
    for name, (field, _) in bad.items():
        failure = engine.failure(name)
        assert failure is not None, name
        assert failure.code == Code.INVALID_ARGUMENT.value, name
        assert field in [v.field for v in failure.violations], name
    for i in range(0, len(bad), 5):
        check_tokens(engine.tokens(f"mate{i}"), cases.alone(mate))
    check_empty(engine)


def test_the_longest_request_and_the_farthest_deadline_are_fine(cases: Cases) -> None:
    engine = cases.engine()
    engine.run(replace(command("far", [3] * 250, 6, logprobs=384), seconds_left=1e300))
    assert len(engine.tokens("far")) == 6
    asked = replace(command("waits", [3], 1, cases.stack([("all", 1.0)])), seconds_left=1e300)
    engine.run(asked)  # sleeps until the adapter lands
    assert engine.failure("waits") is None


def test_the_wait_is_from_arrival_to_the_first_step(cases: Cases) -> None:
    """One runs at a time: the second waits for all of the first, and is counted once though it is set back."""
    engine = cases.engine(max_running=1)
    engine.submit(*(command(f"r{i}", cases.prompts[i], 8) for i in range(2)))
    engine.loop.turn()
    started = time.monotonic()
    engine.finish("r0")
    waited = time.monotonic() - started
    engine.loop.turn()
    engine.scheduler.shrink(1)
    engine.finish("r1")
    stats = engine.stats()
    assert sum(stats.queue_waits) == 2
    assert waited <= stats.queue_wait_seconds <= waited + 60
    first, second = engine.times("r0"), engine.times("r1")
    assert (first.preempted, second.preempted) == (0, 1)
    assert first.waiting + first.prefill + first.decode <= second.waiting <= stats.queue_wait_seconds
    assert min(first.prefill, first.decode, second.prefill, second.decode) > 0
    assert first.loading == second.loading == 0


def test_the_first_token_and_the_last_event_have_times(cases: Cases) -> None:
    engine = cases.engine(max_running=1)
    came = time.monotonic()
    engine.run(command("g", cases.prompts[0], 3))
    passed = time.monotonic() - came
    first, between, last = (output.payload.times for output in engine.outputs["g"])  # type: ignore[union-attr]
    assert between is None
    assert first == replace(last, decode=0.0)
    assert 0 < last.waiting + last.prefill + last.decode <= passed


def test_a_request_waits_for_the_adapters_that_it_is_the_first_to_use(cases: Cases) -> None:
    engine, stack = cases.engine(), cases.stack([("all", 1.0), ("rs", 1.0)])
    engine.submit(embedding("first", cases.prompts[0], stack))
    engine.finish("first")
    engine.run(ScoreCommand("second", cases.prompts[0], cases.prompts[1], stack, tenant="default"))
    first, second = engine.times("first"), engine.times("second")
    assert 0 < first.loading <= first.waiting
    assert second.loading == 0 < second.waiting
    assert (first.decode, second.decode) == (0, 0)
    assert min(first.prefill, second.prefill) > 0


# -- leaving early ----------------------------------------------------------------------------------------------------


def storm(engine: Engine, cases: Cases, random: Random, count: int) -> list[str]:
    """``count`` requests of all kinds, many of which are cancelled or run out of time; gives how each ended."""
    ids = [f"storm-{next(STORMS)}" for _ in range(count)]  # an engine keeps what it was asked before
    cancelled: set[str] = set()
    for id in ids:
        stack, prompt = cases.stack(random.choice(STACKS)), random.choice(cases.prompts)
        if random.random() < 0.2:
            engine.submit(ScoreCommand(id, prompt, random.choice(cases.prompts), stack, tenant="default"))
        else:
            left = random.choice([0.0, 0.02, 0.2, 60.0]) if random.random() < 0.5 else None
            asked = command(id, prompt, random.randint(1, 12), stack, temperature=random.choice([0.0, 1.0]))
            engine.submit(replace(asked, seconds_left=left))
        if random.random() < 0.3:
            engine.loop.turn()
        if random.random() < 0.3:
            victim = random.choice(ids)
            engine.submit(AbortCommand(victim))
            cancelled.add(victim)
    while engine.scheduler.sequences or engine.loop.idle_state()["messages"]:
        engine.loop.turn()
    ends = []
    for id in ids:
        outputs = engine.outputs[id]
        assert sum(o.done for o in outputs) <= 1, "ended twice"
        assert not any(o.done for o in outputs[:-1]), "something came after the end"
        if not outputs or not outputs[-1].done:
            assert id in cancelled, "lost"
            ends.append("cancelled")
        elif (failure := outputs[-1].failure) is not None:
            assert failure.code == Code.DEADLINE_EXCEEDED.value
            ends.append("deadline")
        else:
            ends.append("done")
    return ends


def test_cancels_and_deadlines_leave_nothing_behind(cases: Cases, tight: Engine) -> None:
    ends = storm(tight, cases, Random(1), 150)
    assert {*ends} == {"done", "cancelled", "deadline"}
    check_empty(tight)
    cases.try_in(tight, [Case(cases.prompts[0], cases.stack(STACKS[3]))])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_thousand_requests_leave_nothing_behind(cases: Cases, tight: Engine) -> None:
    for seed in range(3):
        storm(tight, cases, Random(seed), 1000)
        check_empty(tight)


def test_a_deadline_ends_a_waiting_request_while_nothing_runs(cases: Cases, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its adapter never lands: the loop sleeps, and wakes in time."""
    engine = cases.engine()
    monkeypatch.setattr(HostCache, "request", lambda self, version: None)
    asked = command("late", cases.prompts[0], 3, cases.stack([("all", 1.0)]))
    engine.run(replace(asked, seconds_left=0.05))
    failure = engine.failure("late")
    assert failure is not None
    assert failure.code == Code.DEADLINE_EXCEEDED.value
    check_empty(engine)


def test_requests_that_wait_their_turn_get_it_without_another_command(cases: Cases) -> None:
    """One runs, the rest wait: when it ends, nobody has to knock."""
    engine = cases.engine(max_running=1)
    cases.try_in(engine, [Case(cases.prompts[i], cases.stack([]), 2) for i in range(4)])


# -- training ---------------------------------------------------------------------------------------------------------


def test_a_cancelled_job_gives_its_memory_back(cases: Cases, tmp_path: Path) -> None:
    engine = cases.engine()
    texts = prompts(8, lengths=(10, 30), seed=3)
    rows = tuple(TrainRow(tuple(t), tuple(i > 3 for i in range(len(t)))) for t in texts)
    stacks = (cases.stack([("all", 1.0)]),)
    spec = TrainSpec(rank=4, epochs=50, batch_size=4, layers=(1, 2))
    engine.submit(train_command("job", spec, rows, stacks=stacks, output=str(tmp_path / "out")))
    engine.submit(command("beside", cases.prompts[0], 5))
    engine.finish("beside")
    for _ in range(5):
        engine.loop.turn()
    assert engine.stats().memory["training"] > 0
    engine.submit(AbortCommand("job"))
    engine.loop.turn()  # takes the abort
    stats = engine.stats()
    assert (stats.memory["training"], stats.training_jobs) == (0, ())
    seen = len(engine.outputs["job"])
    assert not any(o.done for o in engine.outputs["job"])
    cases.try_in(engine, [Case(cases.prompts[1], cases.stack(STACKS[1]))])
    assert len(engine.outputs["job"]) == seen
    assert not (tmp_path / "out").exists()
    assert all(p.grad is None for p in engine.base.model.parameters())


def test_stopping_fails_what_is_open(cases: Cases, tmp_path: Path) -> None:
    engine = cases.engine()
    texts = prompts(4, seed=3)
    rows = tuple(TrainRow(tuple(t), (True,) * len(t)) for t in texts)
    engine.submit(train_command("job", TrainSpec(epochs=50), rows, output=str(tmp_path / "out")))
    asked: list[GenerateCommand] = [command(f"r{i}", cases.prompts[i], 50) for i in range(3)]
    engine.submit(*asked)
    for _ in range(4):
        engine.loop.turn()
    engine.loop.stop()
    engine.loop.run()
    for id in ("job", *(c.id for c in asked)):
        failure = engine.failure(id)
        assert failure is not None
        assert failure.code == Code.UNAVAILABLE.value
    assert not engine.scheduler.sequences
    assert engine.runner.bank.in_use == 0
