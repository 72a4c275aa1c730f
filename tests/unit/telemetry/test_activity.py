"""What was done in the last seconds, by tenant."""

from __future__ import annotations

import time
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loramux_server.core.types import BASE, Stack
from loramux_server.telemetry.activity import LONGEST, ActivityRecorder, AdapterUse, Latency
from tests.unit.telemetry.test_metrics import stack


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass(frozen=True)
class Ended:
    """What the recorder reads of a request."""

    tenant: str = "default"
    stack: Stack = BASE
    prompt_tokens: int = 5


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def activity(clock: Clock) -> ActivityRecorder:
    return ActivityRecorder(clock)


def test_rates_are_means_of_whole_seconds(activity: ActivityRecorder, clock: Clock) -> None:
    for _ in range(4):
        activity.request_started(Ended(tenant="a", prompt_tokens=6))
        activity.tokens("a", BASE, 3, None)
        clock.now += 1
    activity.tokens("a", BASE, 1000, None)  # in the second that is not over
    found = activity.of("a", 2)
    assert (found.requests_per_second, found.prompt_tokens_per_second) == (1.0, 6.0)
    assert found.generated_tokens_per_second == 3.0
    assert found.requests_running == 4
    assert activity.of("a", 8).generated_tokens_per_second == 1.5
    clock.now += LONGEST + 1
    assert activity.of("a", LONGEST).generated_tokens_per_second == 0.0
    assert activity.of("nobody", 5).requests_running == 0


def test_a_tenants_figures_are_its_own(activity: ActivityRecorder, clock: Clock) -> None:
    for tenant, tokens in (("a", 10), ("b", 30), ("c", 20)):
        activity.request_started(Ended(tenant=tenant))
        activity.tokens(tenant, BASE, tokens, None)
        activity.answered(tenant, BASE, tokens / 100)
        if tenant != "b":
            activity.request_finished(Ended(tenant=tenant))
    clock.now += 1
    assert activity.of("a", 1).generated_tokens_per_second == 10
    assert activity.of("a", 1).time_to_first_token.count == 1
    total = activity.of_all(1)
    assert (total.tenant, total.generated_tokens_per_second, total.requests_running) == ("", 60, 1)
    assert total.time_to_first_token.count == 3
    assert [each.tenant for each in activity.by_tenant(1, 2)] == ["b", "c"]


def test_tenants_are_forgotten_once_nothing_is_left(activity: ActivityRecorder, clock: Clock) -> None:
    for number in range(5000):
        activity.tokens(f"t{number}", BASE, 1, None)
    activity.request_started(Ended(tenant="runs"))
    clock.now += LONGEST + 2
    activity.tokens("new", BASE, 1, None)
    assert set(activity._tenants) == {"runs", "new"}


@given(st.lists(st.floats(0.0002, 1000), min_size=1, max_size=200))
def test_percentiles_are_near_those_of_the_sample(latencies: list[float]) -> None:
    clock = Clock()
    activity = ActivityRecorder(clock)
    for seconds in latencies:
        activity.answered("a", BASE, seconds)
    clock.now += 1
    found = activity.of("a", 1).time_to_first_token
    assert found.count == len(latencies)
    ordered = sorted(latencies)
    for share, value in ((50, found.p50_seconds), (90, found.p90_seconds), (99, found.p99_seconds)):
        exact = ordered[-(-share * len(ordered) // 100) - 1]
        assert value == pytest.approx(exact, rel=0.026)


def test_tokens_that_came_together_share_the_time(activity: ActivityRecorder, clock: Clock) -> None:
    activity.tokens("a", BASE, 1, None)
    activity.tokens("a", BASE, 4, 0.2)
    clock.now += 1
    found = activity.of("a", 1).inter_token_latency
    assert found.count == 4
    assert found.p99_seconds == pytest.approx(0.05, rel=0.026)
    assert activity.of("a", 1).time_to_first_token == Latency()


def test_tokens_of_a_stack_count_for_each_of_its_adapters(activity: ActivityRecorder, clock: Clock) -> None:
    both = Ended(tenant="t", stack=stack("a", "b"), prompt_tokens=6)
    activity.request_started(both)
    activity.tokens("t", both.stack, 3, None)
    activity.request_started(Ended(tenant="u", stack=stack("a"), prompt_tokens=4))
    activity.request_finished(Ended(tenant="u", stack=stack("a")))
    clock.now += 1
    assert activity.adapters(1) == {"a": AdapterUse(1, 2.0, 10.0, 3.0), "b": AdapterUse(1, 1.0, 6.0, 3.0)}
    assert activity.adapters(2, "u") == {"a": AdapterUse(0, 0.5, 2.0, 0.0)}
    assert activity.adapters(1, "nobody") == {}
    clock.now += LONGEST + 1
    assert activity.adapters(LONGEST) == {"a": AdapterUse(1), "b": AdapterUse(1)}
    activity.request_finished(both)
    assert activity.adapters(LONGEST) == {}


def test_many_tenants_cost_no_more_than_they_are(activity: ActivityRecorder, clock: Clock) -> None:
    """The event loop waits for it."""
    count = 10_000
    for number in range(count):
        activity.request_started(Ended(f"tenant-{number}", stack(f"adapter-{number}")))
    clock.now += 1
    began = time.process_time()
    found = activity.adapters(10)
    assert time.process_time() - began < 0.7
    assert len(found) == count
    assert {use.requests_running for use in found.values()} == {1}
