"""Micro-batches: every row once and in order, as many tokens as memory and waiting requests allow."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loramux_server.training.backprop import micro_batch_size
from loramux_server.training.backprop.micro_batch_size import MAX_TOKENS, MicroBatchSizer
from loramux_server.training.work import PAUSE, Interruptible


class Clock:
    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(micro_batch_size, "time", clock)
    return clock


def measure(sizer: MicroBatchSizer, clock: Clock, tokens: int, seconds: float) -> None:
    def work() -> Interruptible[str]:
        clock.now += seconds / 2
        yield PAUSE
        clock.now += seconds / 2
        return "done"

    task = sizer.timed(tokens, work())
    next(task)
    clock.now += 100  # somebody else's
    with pytest.raises(StopIteration, match="done"):
        next(task)


@given(
    lengths=st.lists(st.integers(1, 3000), min_size=1, max_size=12),
    most=st.none() | st.integers(1, 5),
    serving=st.booleans(),
)
def test_micro_batches_are_the_batch_in_order(lengths: list[int], most: int | None, serving: bool) -> None:
    sizer = MicroBatchSizer(10)
    sizer.serving = serving
    batch = list(range(len(lengths)))[::-1]
    parts, left = [], list(batch)
    while left:
        parts.append(sizer.first(left, lengths, most))
        del left[: len(parts[-1])]
    assert [i for part in parts for i in part] == batch
    for part in parts:
        assert len(part) == 1 or sum(lengths[i] for i in part) <= MAX_TOKENS
        assert most is None or len(part) <= most


def test_while_nothing_is_served_a_micro_batch_is_as_large_as_is_efficient(clock: Clock) -> None:
    """A fifth of a second, or what makes no difference any more."""
    sizer = MicroBatchSizer(10)
    assert sizer.first([0, 1, 2, 3], [250] * 4) == [0, 1]  # nothing has been measured
    measure(sizer, clock, 500, 5.0)
    assert sizer.first([0, 1, 2, 3], [250] * 4) == [0, 1]
    for _ in range(40):
        measure(sizer, clock, 7500, 1.0)
    assert sizer.first([0, 1, 2, 3], [490] * 4) == [0, 1, 2]
    for _ in range(40):
        measure(sizer, clock, 90_000, 1.0)
    assert len(sizer.first([*range(20)], [500] * 20)) == MAX_TOKENS // 500


def test_the_first_micro_batch_beside_serving_is_small() -> None:
    sizer = MicroBatchSizer(10)
    sizer.serving = True
    assert sizer.first([0, 1, 2], [30] * 3) == [0, 1]
    assert sizer.first([0, 1], [300] * 2) == [0]


def test_micro_batches_follow_the_measured_speed(clock: Clock) -> None:
    """Beside requests a work item, here a tenth of a micro-batch, takes 30 ms."""
    sizer = MicroBatchSizer(10)
    sizer.serving = True
    measure(sizer, clock, 700, 1.0)
    assert sizer.first([0, 1, 2, 3], [60] * 4) == [0, 1, 2]
    for _ in range(30):
        measure(sizer, clock, 200, 1.0)
    assert sizer.first([0, 1, 2, 3], [60] * 4) == [0]


def test_requests_that_come_or_go_count_from_the_next_micro_batch(clock: Clock) -> None:
    sizer = MicroBatchSizer(10)
    measure(sizer, clock, 350, 1.0)
    sizer.serving = True
    assert sizer.first([0, 1, 2, 3, 4, 5], [50] * 6) == [0, 1]
    sizer.serving = False
    assert sizer.first([2, 3, 4, 5], [50] * 6) == [2, 3, 4, 5]  # 200 tokens


def test_less_memory_is_a_bound_until_it_is_lifted() -> None:
    sizer = MicroBatchSizer(10)
    sizer.limit(100)
    assert sizer.first([0, 1, 2, 3], [50] * 4) == [0, 1]
    sizer.limit(30)
    assert sizer.first([0, 1, 2, 3], [50] * 4) == [0]
    sizer.lift()
    assert sizer.first([0, 1, 2, 3], [50] * 4) == [0, 1, 2, 3]


def test_a_micro_batch_that_takes_no_time_is_no_division_by_zero(clock: Clock) -> None:
    sizer = MicroBatchSizer(10)
    sizer.serving = True
    measure(sizer, clock, 10, 0.0)
    assert sizer.first([0, 1], [2000] * 2) == [0, 1]
