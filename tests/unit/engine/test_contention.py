"""Shares of steps: a tenant with little to do hardly notices one that floods, and nobody is starved."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from loramux_server.core.callers.principal import SERVER_TENANT
from loramux_server.engine.scheduling.contention import BAND, GRACE, LONGEST, PROBE, RECENT, Contention
from loramux_server.engine.scheduling.plan import StepPlan
from loramux_server.engine.scheduling.scheduler import Scheduler
from loramux_server.engine.scheduling.sequence import State

from .simulation import make_scheduler, sequence


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def on_cpu(tokens: int) -> float:
    """Seconds of a step of the default base on two cores."""
    return 0.019 + 0.003 * tokens


def on_gpu(tokens: int) -> float:
    """As of one that is as long with 64 tokens as with one."""
    return 0.005 + 0.000005 * tokens


def run(
    scheduler: Scheduler, clock: Clock, steps: int, cost: Callable[[int], float] = on_cpu
) -> list[tuple[StepPlan, float]]:
    """Steps with a token of whoever samples one, and their lengths. Sequences of ``max_tokens`` end."""
    found = []
    for _ in range(steps):
        plan = scheduler.schedule()
        seconds = cost(plan.tokens)
        clock.now += seconds
        scheduler.advance(plan)
        scheduler.contention.measured(plan.mix, seconds)
        for work in plan.work:
            seq = scheduler.get(work.id)
            if seq is not None and work.samples:
                seq.tokens.append(1)
                if seq.num_output == seq.sampling.max_tokens:
                    scheduler.finish(seq)
        found.append((plan, seconds))
    return found


def flooded(clock: Clock, slowdown: float = 1.2, **limits: int) -> Scheduler:
    """64 sequences of one tenant, long prompts, and as many that wait."""
    scheduler = make_scheduler(4096, 16, clock=clock, tenant_slowdown=slowdown, max_batch_tokens=512, **limits)
    for i in range(128):
        scheduler.add(sequence(f"f{i}", 300 + i, 10_000, tenant="flood"))
    return scheduler


def ids(plan: StepPlan) -> list[str]:
    return [work.id for work in plan.work]


def test_a_quiet_tenant_gets_a_token_in_every_step_and_steps_stay_short() -> None:
    clock = Clock()
    scheduler = flooded(clock)
    run(scheduler, clock, 100)
    scheduler.add(sequence("q", 50, 200, tenant="quiet"))
    first, *steps = run(scheduler, clock, 180)
    assert "q" in ids(first[0]), "it waits for no place, though 64 run"
    assert first[1] < 1.5 * on_cpu(50)
    assert all("q" in ids(plan) for plan, _ in steps)
    lengths = sorted(seconds for _, seconds in steps)
    assert lengths[int(0.95 * len(lengths))] <= 1.2 * on_cpu(1)
    served = [id for plan, _ in steps for id in ids(plan) if id != "q"]
    assert len(served) >= 0.9 * len(steps), "an equal share is the flood's"
    assert len(set(served)) > 60, "its sequences take turns"


@pytest.mark.slow
def test_where_tokens_cost_nothing_more_the_flood_keeps_its_speed() -> None:
    clock = Clock()
    scheduler = flooded(clock)
    run(scheduler, clock, 100, on_gpu)
    scheduler.add(sequence("q", 50, 10_000, tenant="quiet"))
    run(scheduler, clock, 1000, on_gpu)
    steps = run(scheduler, clock, 200, on_gpu)
    lengths = sorted(seconds for _, seconds in steps)
    assert lengths[190] <= 1.2 * on_gpu(1)
    assert sum(plan.tokens for plan, _ in steps) / len(steps) > 40


def test_alone_nothing_is_held_back() -> None:
    clock = Clock()
    scheduler = flooded(clock)
    run(scheduler, clock, 100)
    assert [plan.tokens for plan, _ in run(scheduler, clock, 5)] == [64] * 5
    scheduler.add(sequence("q", 50, 3, tenant="quiet"))
    scheduler.add(sequence("s", 50, 3, tenant=SERVER_TENANT))  # the server's own trial of an adapter
    run(scheduler, clock, 40)
    clock.now += RECENT
    assert scheduler.schedule().tokens == 64


def test_steps_stay_short_while_a_tenant_may_come_back() -> None:
    clock = Clock()
    scheduler = flooded(clock)
    scheduler.add(sequence("q", 50, 3, tenant="quiet"))
    run(scheduler, clock, 50)
    clock.now += GRACE
    steps = run(scheduler, clock, 100)[50:]
    assert max(seconds for _, seconds in steps) <= 1.2 * LONGEST
    assert sum(plan.tokens for plan, _ in steps) / sum(s for _, s in steps) > 0.75 * 64 / on_cpu(64)
    quick = run(scheduler, clock, 100, on_gpu)[99]
    assert quick[0].tokens == 64


def test_without_a_bound_steps_take_all_that_there_is() -> None:
    clock = Clock()
    scheduler = flooded(clock, slowdown=0.0)
    run(scheduler, clock, 100)
    scheduler.add(sequence("q", 50, 50, tenant="quiet"))
    assert [plan.tokens for plan, _ in run(scheduler, clock, 5)[1:]] == [64] * 4


def test_tenants_with_as_much_to_do_share_evenly() -> None:
    clock = Clock()
    scheduler = make_scheduler(512, 16, clock=clock)
    for i in range(8):
        scheduler.add(sequence(f"{i}", 4, 1000, tenant="ab"[i % 2]))
    assert all(plan.tokens == 8 for plan, _ in run(scheduler, clock, 50)[1:])


def test_between_two_requests_of_a_tenant_no_long_step_begins() -> None:
    clock = Clock()
    scheduler = flooded(clock)
    run(scheduler, clock, 100)
    for i in range(5):
        scheduler.add(sequence(f"q{i}", 50, 20, tenant="quiet"))
        run(scheduler, clock, 22)
        assert scheduler.get(f"q{i}") is None
        between = run(scheduler, clock, 4)
        assert max(plan.tokens for plan, _ in between) <= 2
        assert min(plan.tokens for plan, _ in between) >= 1


def test_a_tenant_that_fell_behind_becomes_the_first() -> None:
    contention = Contention(1.2, 512, Clock())
    sequences = {"a": 1, "b": 9}
    assert "b" in contention.shares(sequences, {"a": 0.0, "b": 0.0}, "ab", "ab")
    behind = {"a": BAND + 1, "b": 0.0}
    assert contention.shares(sequences, behind, "ab", "") == {"a": 9}


def test_every_so_often_the_lightest_are_measured_alone() -> None:
    contention = Contention(1.2, 512, Clock())
    given = []
    for _ in range(3 * PROBE):
        shares = contention.shares({"a": 1, "b": 9}, {}, "ab", "ab")
        mix = contention.planned([("a", 1), *[("b", 1)] * shares["b"]])
        contention.measured(mix, 0.02 if shares["b"] == 0 else 0.1)
        given.append(shares["b"])
    assert given[0] == 0
    assert 3 <= given.count(0) <= 4
    assert set(given) == {0, 1}, "longer steps leave no more than an equal share"


@pytest.mark.parametrize("pages", [40, 4096])
def test_a_flood_that_holds_all_places_and_pages_gives_some_up(pages: int) -> None:
    clock = Clock()
    scheduler = make_scheduler(pages, 16, clock=clock, max_batch_tokens=64, max_running=8)
    for i in range(64):
        scheduler.add(sequence(f"f{i}", 100, 400, tenant="flood"))
    run(scheduler, clock, 60)
    assert scheduler.num_running >= 5
    scheduler.add(sequence("q", 60, 40, tenant="quiet"))
    run(scheduler, clock, 1)
    quiet = scheduler.get("q")
    assert quiet is not None
    assert quiet.state is State.RUNNING
    run(scheduler, clock, 60)
    assert quiet.num_preempted == 0
    assert scheduler.get("q") is None
    scheduler.pages.check()
