"""The scheduler: each rule on its own, and a seeded life of all of them together over a fake model."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loramux_server.core.errors import Code, Error
from loramux_server.core.types import Grammar, GrammarKind, Pooling, Stack
from loramux_server.engine.scheduling.admission import PATIENCE
from loramux_server.engine.scheduling.drafts import NgramDrafter
from loramux_server.engine.scheduling.plan import StepPlan, Work
from loramux_server.engine.scheduling.sequence import State
from loramux_server.lora.slots import Slot, Swap
from tests.examples import examples

from .simulation import FakeBank, Machine, key_of, make_scheduler, sequence, simulate, solo, stack_of

SEEDS = st.integers(0, 2**32 - 1)


@given(SEEDS)
@examples(150)
def test_life(seed: int) -> None:
    """No request is lost, doubled or starved, and each gives what it gives alone, whatever happens around it."""
    simulate(seed)


@pytest.mark.slow
@pytest.mark.timeout(600)  # two minutes where other processes want the processors
@given(SEEDS)
@examples(2000)
def test_long_life(seed: int) -> None:
    simulate(seed, steps=150)


@pytest.mark.slow
def test_the_simulation_reaches_what_it_is_for() -> None:
    """Preemption, prefix hits, copies of pages and every way to end happen in it."""
    ends: Counter[str] = Counter()
    preemptions = hits = copies = drafted = accepted = 0
    for seed in range(40):
        machine = simulate(seed)
        ends.update(machine.ended.values())
        preemptions += machine.scheduler.preemptions
        hits += machine.scheduler.pages.hit_tokens
        copies += machine.copies
        if (drafter := machine.scheduler.drafter) is not None:
            drafted, accepted = drafted + drafter.drafted, accepted + drafter.accepted
    assert set(ends) == {"done", "cancelled", "expired", "adapter", "swap"}
    assert preemptions > 50
    assert hits > 200
    assert copies > 10
    assert 20 < accepted < drafted


def test_the_simulation_notices_another_tenants_prefix() -> None:
    """With one salt for all tenants the outputs differ: the harness can fail."""
    bank = FakeBank()
    scheduler = make_scheduler(bank=bank, salt=lambda tenant: b"same")
    machine = Machine(scheduler, bank)
    for tenant in "ab":
        scheduler.add(sequence(tenant, 9, tenant=tenant))
        while scheduler.sequences:
            machine.step()
    assert machine.outputs["a"] == solo(key_of(sequence("", tenant="a")), [*range(9)], 4)
    assert machine.outputs["b"] != solo(key_of(sequence("", tenant="b")), [*range(9)], 4)


# -- one rule at a time -------------------------------------------------------------------------------------------


def ids(plan: StepPlan) -> list[str]:
    return [w.id for w in plan.work]


def advance(scheduler, token: int = 7) -> StepPlan:  # type: ignore[no-untyped-def]
    """A step whose chosen tokens are all ``token``; nothing ever ends."""
    plan = scheduler.schedule()
    scheduler.advance(plan)
    for work in plan.work:
        if work.samples:
            scheduler.get(work.id).tokens.append(token)
    return plan


def test_prompts_are_cut_to_the_budget_and_answers_come_first() -> None:
    scheduler = make_scheduler(max_batch_tokens=5)
    scheduler.add(sequence("a", 7, 10))
    assert [(w.id, w.start, w.length, w.samples) for w in advance(scheduler).work] == [("a", 0, 5, False)]
    assert [(w.id, w.start, w.length, w.samples) for w in advance(scheduler).work] == [("a", 5, 2, True)]
    scheduler.add(sequence("b", [9] * 9, 10))
    plan = advance(scheduler)
    assert [(w.id, w.start, w.length) for w in plan.work] == [("a", 7, 1), ("b", 0, 4)]
    assert (plan.tokens, plan.kind) == (5, "prefill")
    advance(scheduler)
    advance(scheduler)
    assert advance(scheduler).kind == "decode"


def test_a_plan_holds_all_of_its_step() -> None:
    """Tokens, positions, pages, slots and swaps, as values; a swap has what is evicted for it."""
    bank = FakeBank(rows=8)
    bank.loaded = {"x": 4, "y": 6}
    scheduler = make_scheduler(bank=bank, size=4)
    scheduler.add(sequence("a", [5, 6, 7], 9, stack=stack_of(("x", 4, 0.5))))
    scheduler.add(sequence("scored", [1, 2, 3, 4, 5, 6], score_from=4))
    x, y = Slot("x", 0, 4), Slot("y", 0, 6)
    first = advance(scheduler, token=8)
    assert first == StepPlan(
        work=(
            Work("a", 0, (5, 6, 7), (0,), ((x, 0.5),), samples=True),
            Work("scored", 0, (1, 2, 3, 4, 5, 6), (1, 2), scored=range(3, 5)),
        ),
        started=("a", "scored"),
        swaps=(Swap(x),),
    )
    assert first.without({"scored"}) == StepPlan(first.work[:1], started=("a",))
    scheduler.finish(scheduler.get("scored"))  # type: ignore[arg-type]
    assert advance(scheduler) == StepPlan((Work("a", 3, (8,), (0,), ((x, 0.5),), samples=True),))
    scheduler.finish(scheduler.get("a"))  # type: ignore[arg-type]
    scheduler.add(sequence("b", [9], 9, stack=stack_of(("y", 6, 1.0))))
    assert scheduler.schedule().swaps == (Swap(y, evicted=(x,)),)


def test_adapted_rows_come_before_bare_ones_and_a_weight_of_zero_is_bare() -> None:
    bank = FakeBank()
    bank.loaded["x"] = 4
    scheduler = make_scheduler(bank=bank)
    for id, stack in (("bare", Stack()), ("zero", stack_of(("x", 4, 0.0))), ("adapted", stack_of(("x", 4, 1.0)))):
        scheduler.add(sequence(id, 2, 9, stack=stack))
    advance(scheduler)
    assert ids(advance(scheduler))[0] == "adapted"


def test_a_full_queue_says_when_to_come_again() -> None:
    scheduler = make_scheduler(max_queue=2)
    for i in range(2):
        scheduler.add(sequence(f"r{i}"))
    with pytest.raises(Error) as refused:
        scheduler.add(sequence("r2"))
    assert (refused.value.code, refused.value.reason) == (Code.RESOURCE_EXHAUSTED, "QUEUE_FULL")
    assert refused.value.retry_after
    assert scheduler.get("r2") is None
    advance(scheduler)
    scheduler.add(sequence("r2"))


def test_a_request_that_can_never_fit_is_refused() -> None:
    scheduler = make_scheduler(pages=2, size=4)
    with pytest.raises(Error) as refused:
        scheduler.add(sequence("big", 5, 4))
    assert refused.value.reason == "KV_CACHE_TOO_SMALL"
    scheduler.add(sequence("fits", 5, 3))
    with pytest.raises(Error) as refused:
        scheduler.add(sequence("fits"))
    assert refused.value.code is Code.ALREADY_EXISTS


def test_when_pages_run_out_the_youngest_is_set_back_and_comes_again() -> None:
    scheduler = make_scheduler(pages=4, size=2)
    for id in "ab":
        scheduler.add(sequence(id, [1, 2, ord(id)], 5))
    for _ in range(2):
        advance(scheduler)
    plan = advance(scheduler)
    assert (plan.preempted, ids(plan)) == (("b",), ["a"])
    b = scheduler.get("b")
    assert b is not None
    assert (b.state, b.num_computed, b.pages, b.num_preempted) == (State.WAITING, 0, [], 1)
    assert len(b.tokens) == 5  # what it said stays said
    scheduler.finish(scheduler.get("a"))  # type: ignore[arg-type]
    assert ids(advance(scheduler)) == ["b"]


def test_after_an_out_of_memory_step_all_wait_in_their_old_order_and_steps_are_smaller() -> None:
    scheduler = make_scheduler(max_batch_tokens=64)
    for id in "abc":
        scheduler.add(sequence(id, 6))
    scheduler.schedule()
    scheduler.shrink(9)
    assert (scheduler.num_running, scheduler.num_waiting, scheduler.pages.held) == (0, 3, 0)
    assert [(w.id, w.length) for w in scheduler.schedule().work] == [("a", 6), ("b", 3)]
    scheduler.shrink(100)
    assert scheduler.limits.max_batch_tokens == 9
    found = []
    while scheduler.widen():
        found.append((scheduler.limits.max_batch_tokens, scheduler.limits.max_running))
    assert found == [(18, 18), (36, 36), (64, 64)]


def test_finishing_twice_does_nothing() -> None:
    scheduler = make_scheduler()
    seq = sequence("a")
    scheduler.add(seq)
    scheduler.schedule()
    for _ in range(2):
        scheduler.finish(seq)
    assert not any(scheduler.idle_state().values())


def test_deadlines_count_waiting_or_running() -> None:
    scheduler = make_scheduler(max_running=1)
    for id, deadline in (("a", 5.0), ("b", 3.0), ("c", None)):
        scheduler.add(sequence(id, deadline=deadline))
    scheduler.schedule()
    assert [s.id for s in scheduler.expired(2.9)] == []
    assert [s.id for s in scheduler.expired(3.0)] == ["b"]
    assert [s.id for s in scheduler.expired(9.0)] == ["a", "b"]


def test_a_late_adapter_holds_up_nobody() -> None:
    bank = FakeBank()
    scheduler = make_scheduler(bank=bank)
    scheduler.add(sequence("late", stack=stack_of(("x", 4, 1.0))))
    scheduler.add(sequence("next"))
    assert ids(advance(scheduler)) == ["next"]
    bank.load(scheduler, "x")
    assert sorted(ids(advance(scheduler))) == ["late", "next"]


def test_scores_take_a_cached_prefix_of_their_prompt_alone_and_embeddings_none() -> None:
    """Logits are wanted from the prompt's last token on, hidden states of all: pages hold neither."""
    scheduler = make_scheduler()
    scheduler.add(sequence("a", 9, 1))
    advance(scheduler)
    scheduler.finish(scheduler.get("a"))  # type: ignore[arg-type]
    scheduler.add(sequence("scored", 9, score_from=5))
    scheduler.add(sequence("short", 9, score_from=4))
    embedded = sequence("embedded", 9)
    embedded.pooling = Pooling.MEAN
    scheduler.add(embedded)
    scheduler.add(sequence("hit", 9))
    plan = scheduler.schedule()
    assert {w.id: w.start for w in plan.work} == {"scored": 4, "short": 0, "embedded": 0, "hit": 8}
    assert {w.id: w.scored for w in plan.work if w.scored} == {"scored": range(4, 8), "short": range(3, 8)}


def test_cached_tokens_are_those_of_the_first_admission() -> None:
    scheduler = make_scheduler(pages=5, size=2)
    scheduler.add(sequence("a", [1, 2, 3], 5))
    scheduler.add(sequence("b", [4, 5, 6], 5))
    while not advance(scheduler).preempted:
        pass
    scheduler.finish(scheduler.get("a"))  # type: ignore[arg-type]
    advance(scheduler)
    b = scheduler.get("b")
    assert b is not None
    assert (b.num_preempted, b.num_cached) == (1, 0)


# -- nobody starves -----------------------------------------------------------------------------------------------


def serve(scheduler, steps: int, *, flood=None) -> Counter[str]:  # type: ignore[no-untyped-def]
    """Run ``steps`` steps, ``flood(step)`` before each; count tokens computed by tenant. Requests end at max_tokens."""
    served: Counter[str] = Counter()
    for step in range(steps):
        if flood is not None:
            flood(step)
        for work in advance(scheduler).work:
            seq = scheduler.get(work.id)
            served[seq.tenant] += work.length
            if seq.num_output >= seq.sampling.max_tokens:
                scheduler.finish(seq)
    return served


def test_a_flood_does_not_delay_another_tenant() -> None:
    scheduler = make_scheduler(max_running=4, max_batch_tokens=16)
    for i in range(200):
        scheduler.add(sequence(f"flood{i}", 4, 4, tenant="flood"))
    serve(scheduler, 10)
    scheduler.add(sequence("late", 4, 4, tenant="other"))
    serve(scheduler, 10)  # one round of those running, then its own
    assert scheduler.get("late") is None
    assert scheduler.num_waiting > 100


def test_two_busy_tenants_share_evenly_and_a_higher_rank_gets_fewer_tokens() -> None:
    for stack, ratio in ((Stack(), 1.0), (stack_of(("x", 64, 1.0)), 2.0)):
        bank = FakeBank()
        bank.loaded["x"] = 64
        scheduler = make_scheduler(bank=bank, max_running=2, max_batch_tokens=8, max_queue=10_000)
        for i in range(400):
            scheduler.add(sequence(f"a{i}", 4, 4, tenant="a"))
            scheduler.add(sequence(f"b{i}", 4, 4, tenant="b", stack=stack))
        served = serve(scheduler, 400)
        assert served["a"] / served["b"] == pytest.approx(ratio, rel=0.1)


def test_no_credit_is_saved_up_while_away() -> None:
    scheduler = make_scheduler(max_running=2, max_batch_tokens=8, max_queue=10_000)
    for i in range(500):
        scheduler.add(sequence(f"a{i}", 4, 4, tenant="a"))
    serve(scheduler, 200)
    for i in range(100):
        scheduler.add(sequence(f"b{i}", 4, 4, tenant="b"))
    served = serve(scheduler, 100)
    assert served["a"] / served["b"] == pytest.approx(1.0, rel=0.15)


def test_a_large_request_is_not_kept_out_by_small_ones() -> None:
    """The large one wants all pages, another tenant's small ones never stop coming."""
    scheduler = make_scheduler(pages=8, size=4, max_queue=10_000)

    def flood(step: int) -> None:
        for i in range(3):
            scheduler.add(sequence(f"s{step}-{i}", [step, i, 1], 4, tenant="small"))

    serve(scheduler, 5, flood=flood)
    scheduler.add(sequence("large", 29, 3, tenant="large"))
    for step in range(5, 60):
        serve(scheduler, 1, flood=lambda _, step=step: flood(step))
        if scheduler.get("large") is None:
            return
    raise AssertionError("the large request starved")


def test_adapters_in_use_are_let_run_out_for_one_that_finds_no_room() -> None:
    """A bank of one adapter, and requests for x never stop coming: y's turn comes all the same."""
    bank = FakeBank(rows=4)
    bank.loaded = {"x": 4, "y": 4}
    scheduler = make_scheduler(bank=bank, max_queue=10_000)
    started = 0

    def flood(step: int) -> None:
        nonlocal started
        scheduler.add(sequence(f"x{step}", 2, 4, stack=stack_of(("x", 4, 1.0)), tenant="x"))
        started += 1

    serve(scheduler, 4, flood=flood)
    scheduler.add(sequence("y", 2, 4, stack=stack_of(("y", 4, 1.0)), tenant="y"))
    scheduler.add(sequence("bare", 2, 4, tenant="bare"))
    serve(scheduler, 1)
    assert scheduler.get("bare").state is State.RUNNING  # type: ignore[union-attr]
    for step in range(5, 5 + PATIENCE + 20):
        serve(scheduler, 1, flood=lambda _, step=step: flood(step))
        if scheduler.get("y") is None:
            return
    raise AssertionError("the request starved")


# -- one step ahead -------------------------------------------------------------------------------------------------


def pending(scheduler, *names: str) -> None:  # type: ignore[no-untyped-def]
    """What a launched step leaves: its tokens are computed, and those that it selects are not known."""
    plan = scheduler.schedule()
    scheduler.advance(plan)
    assert tuple(ids(plan)) == names
    for work in plan.work:
        scheduler.get(work.id).pending = work.samples


def test_a_step_is_planned_as_if_all_went_on() -> None:
    """The token that only the device knows has a place in it; one that is the last of its answer has none."""
    scheduler = make_scheduler(size=4)
    scheduler.add(sequence("a", [5, 6, 7, 8], 9))
    scheduler.add(sequence("last", [1, 2], 1))
    scheduler.add(sequence("scored", [1, 2, 3], score_from=1))
    pending(scheduler, "a", "last", "scored")
    scheduler.add(sequence("new", [3], 9))
    plan = scheduler.schedule()
    assert plan.work == (
        Work("a", 4, (0,), tuple(scheduler.get("a").pages), samples=True, pending=True),  # type: ignore[union-attr]
        Work("new", 0, (3,), tuple(scheduler.get("new").pages), samples=True),  # type: ignore[union-attr]
    )
    assert len(plan.work[0].pages) == 2
    assert plan.kind == "decode"


def test_a_sequence_that_is_set_back_while_its_token_is_pending_waits_for_it() -> None:
    scheduler = make_scheduler()
    scheduler.add(sequence("a", [5, 6], 9))
    pending(scheduler, "a")
    [seq] = scheduler.sequences
    scheduler.shrink(8)
    assert scheduler.schedule().work == ()
    seq.tokens.append(7)
    seq.pending = False
    assert [(w.id, w.tokens, w.pending) for w in scheduler.schedule().work] == [("a", (5, 6, 7), False)]


def test_masks_and_drafts_need_to_know_the_tokens() -> None:
    drafter = NgramDrafter(0.1)
    scheduler = make_scheduler(drafter=drafter)
    scheduler.add(sequence("a", [1, 2, 3, 4], 9))
    pending(scheduler, "a")
    foreseen = [scheduler.foresees]
    [seq] = scheduler.sequences
    seq.grammar = Grammar(GrammarKind.REGEX, "a")
    foreseen.append(scheduler.foresees)
    seq.grammar, seq.tokens[:] = None, [1, 2, 3, 1, 2]
    drafter.forget("a")
    seq.num_computed = 5
    foreseen.append(scheduler.foresees)
    assert foreseen == [True, False, False]
    assert not any(work.draft for work in scheduler.schedule().work), "nothing follows a token that is not known"
