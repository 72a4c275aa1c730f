"""Pieces of training: every row once and in order, as large as memory and the time that is left allow."""

from __future__ import annotations

from collections.abc import Generator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loramux_server.training import pace as pace_module
from loramux_server.training.pace import MAX_TOKENS, Pace


class Clock:
    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(pace_module, "time", clock)
    return clock


def measure(pace: Pace, clock: Clock, tokens: int, seconds: float) -> None:
    def work() -> Generator[None, None, str]:
        clock.now += seconds / 2
        yield
        clock.now += seconds / 2
        return "done"

    piece = pace.measure(tokens, work())
    next(piece)
    clock.now += 100  # somebody else's
    with pytest.raises(StopIteration, match="done"):
        next(piece)


@given(
    lengths=st.lists(st.integers(1, 3000), min_size=1, max_size=12),
    most=st.none() | st.integers(1, 5),
    serving=st.booleans(),
)
def test_parts_are_the_batch_in_order(lengths: list[int], most: int | None, serving: bool) -> None:
    pace = Pace(10)
    pace.serving = serving
    batch = list(range(len(lengths)))[::-1]
    parts = list(pace.split(batch, lengths, most))
    assert [i for part in parts for i in part] == batch
    for part in parts:
        assert len(part) == 1 or sum(lengths[i] for i in part) <= MAX_TOKENS
        assert most is None or len(part) <= most


def test_with_nobody_waiting_a_piece_is_as_large_as_makes_it_efficient(clock: Clock) -> None:
    """A fifth of a second, or what makes no difference any more."""
    pace = Pace(10)
    assert next(pace.split([0, 1, 2, 3], [250] * 4)) == [0, 1]  # nothing has been measured
    measure(pace, clock, 500, 5.0)
    assert next(pace.split([0, 1, 2, 3], [250] * 4)) == [0, 1]
    for _ in range(40):
        measure(pace, clock, 7500, 1.0)
    assert next(pace.split([0, 1, 2, 3], [490] * 4)) == [0, 1, 2]
    for _ in range(40):
        measure(pace, clock, 90_000, 1.0)
    assert len(next(pace.split([*range(20)], [500] * 20))) == MAX_TOKENS // 500


def test_the_first_piece_beside_serving_is_small() -> None:
    pace = Pace(10)
    pace.serving = True
    assert next(pace.split([0, 1, 2], [30] * 3)) == [0, 1]
    assert next(pace.split([0, 1], [300] * 2)) == [0]


def test_pieces_follow_the_measured_speed(clock: Clock) -> None:
    """Beside requests a unit, a tenth of a piece, takes 30 ms."""
    pace = Pace(10)
    pace.serving = True
    measure(pace, clock, 700, 1.0)
    assert next(pace.split([0, 1, 2, 3], [60] * 4)) == [0, 1, 2]
    for _ in range(30):
        measure(pace, clock, 200, 1.0)
    assert next(pace.split([0, 1, 2, 3], [60] * 4)) == [0]


def test_requests_that_come_or_go_count_from_the_next_part(clock: Clock) -> None:
    pace = Pace(10)
    measure(pace, clock, 350, 1.0)
    parts = pace.split([0, 1, 2, 3, 4, 5], [50] * 6)
    pace.serving = True
    assert next(parts) == [0, 1]
    pace.serving = False
    assert next(parts) == [2, 3, 4, 5]  # 200 tokens


def test_a_piece_that_takes_no_time_is_no_division_by_zero(clock: Clock) -> None:
    pace = Pace(10)
    pace.serving = True
    measure(pace, clock, 10, 0.0)
    assert next(pace.split([0, 1], [2000] * 2)) == [0, 1]
