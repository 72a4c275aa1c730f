"""Which rows a step takes and at what rate: every row once an epoch, and the same whenever it is asked."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loramux_server.core.jobs import TrainSpec
from loramux_server.data.rows_file import assign_stacks
from loramux_server.training.schedule import MIN_WARMUP, Schedule

SPEC = TrainSpec(batch_size=4, epochs=3, learning_rate=1e-3)


@given(rows=st.integers(1, 40), size=st.integers(1, 9), seed=st.integers(0, 5))
def test_every_epoch_takes_every_row_once(rows: int, size: int, seed: int) -> None:
    order = Schedule(replace(SPEC, batch_size=size, seed=seed), rows)
    for epoch in range(3):
        steps = range(epoch * order.steps_per_epoch, (epoch + 1) * order.steps_per_epoch)
        batches = [order.batch(step) for step in steps]
        assert Counter(i for b in batches for i in b) == Counter(range(rows))
        assert all(1 <= len(b) <= size for b in batches)


def test_a_step_does_not_depend_on_those_before() -> None:
    whole = [Schedule(SPEC, 23).batch(step) for step in range(18)]
    assert [Schedule(SPEC, 23).batch(step) for step in reversed(range(18))] == whole[::-1]


def test_epochs_and_seeds_shuffle_differently() -> None:
    order = Schedule(SPEC, 40)
    first = [order.batch(s) for s in range(10)]
    assert first != [order.batch(s) for s in range(10, 20)]
    assert first != [Schedule(replace(SPEC, seed=1), 40).batch(s) for s in range(10)]


@pytest.mark.parametrize(
    ("rows", "epochs", "most", "steps"),
    [(10, 3, None, 9), (10, 0.5, None, 2), (10, 3, 4, 4), (1, 0.1, None, 1), (8, 1, 9, 9), (3, 3, 50, 50)],
)
def test_field_35_max_steps_overrides_epochs(rows: int, epochs: float, most: int | None, steps: int) -> None:
    assert Schedule(replace(SPEC, epochs=epochs, max_steps=most), rows).total_steps == steps


@given(
    rows=st.integers(1, 200),
    epochs=st.floats(0.1, 5),
    ratio=st.sampled_from([0.0, 0.06, 0.5, 1.0]),
    shape=st.sampled_from(["linear", "cosine", "constant"]),
)
def test_the_rate_rises_to_its_peak_then_never_rises(rows: int, epochs: float, ratio: float, shape: str) -> None:
    order = Schedule(replace(SPEC, epochs=epochs, warmup_ratio=ratio, lr_scheduler=shape), rows)
    rates = [order.learning_rate(step) for step in range(order.total_steps)]
    assert all(0 < r <= SPEC.learning_rate for r in rates), "a step at rate 0 is a step lost"
    top = rates.index(max(rates))
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert max(rates) == pytest.approx(SPEC.learning_rate)


def test_warm_up_is_at_least_a_few_steps_and_at_most_half() -> None:
    long = Schedule(replace(SPEC, epochs=1, batch_size=1, warmup_ratio=0.01), 100)
    assert long.learning_rate(MIN_WARMUP - 2) < SPEC.learning_rate
    assert long.learning_rate(MIN_WARMUP - 1) == SPEC.learning_rate
    short = Schedule(replace(SPEC, epochs=1, batch_size=1), 4)
    assert [round(short.learning_rate(s) / SPEC.learning_rate, 3) for s in range(4)] == [0.5, 1.0, 1.0, 0.5]


def test_steps_of_warm_up_come_before_their_share() -> None:
    given = Schedule(replace(SPEC, epochs=1, batch_size=1, warmup_ratio=0.5, warmup_steps=2), 8)
    assert [round(given.learning_rate(s) / SPEC.learning_rate, 3) for s in range(4)] == [0.5, 1.0, 1.0, 0.833]
    none = Schedule(replace(given.spec, warmup_steps=0), 8)
    assert none.learning_rate(0) == SPEC.learning_rate
    beyond = Schedule(replace(given.spec, warmup_steps=100), 8)
    rates = [beyond.learning_rate(step) for step in range(8)]
    assert rates == sorted(rates)
    assert rates[-1] == SPEC.learning_rate


def test_rows_without_a_stack_take_turns() -> None:
    assert assign_stacks((None, 2, None, None, 0, None), 3) == [0, 2, 1, 2, 0, 0]
