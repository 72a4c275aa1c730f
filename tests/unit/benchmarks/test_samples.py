"""From times to figures."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from benchmarks.samples import Sample, Stopwatch, agreement, p95, summarise


def watch(*times: float) -> Stopwatch:
    ticks: Iterator[float] = iter(times)
    return Stopwatch(lambda: next(ticks))


def test_tokens_that_come_together_share_the_time_before_them() -> None:
    stopwatch = watch(10.0, 10.5, 10.7, 11.3)
    stopwatch.tokens([1])
    stopwatch.tokens([2])
    stopwatch.tokens([3, 4, 5])
    sample = stopwatch.sample(prompt_tokens=7)
    assert sample.first == pytest.approx(0.5)
    assert sample.gaps == pytest.approx((0.2, 0.2, 0.2, 0.2))
    assert (sample.tokens, sample.prompt_tokens) == ((1, 2, 3, 4, 5), 7)


def test_tokens_beside_the_first_have_no_time_between() -> None:
    stopwatch = watch(0.0, 1.0, 3.0)
    stopwatch.tokens([])
    stopwatch.tokens([1, 2])
    stopwatch.tokens([3])
    assert stopwatch.sample().first == 1.0
    assert stopwatch.sample().gaps == (0.0, 2.0)


def test_figures_of_overlapping_requests() -> None:
    samples = [Sample(1.0, (0.1, 0.3), (1, 2, 3)), Sample(3.0, (0.2,), (4, 5)), Sample(2.0, (), (6,))]
    figures = summarise(samples, seconds=4.0)
    assert (figures.requests, figures.tokens, figures.tokens_per_second) == (3, 6, 1.5)
    assert (figures.first_p50, figures.gap_p50) == (2.0, pytest.approx(0.2))
    assert 2.0 < figures.first_p95 <= 3.0
    assert 0.2 < figures.gap_p95 <= 0.3


def test_a_single_token_each_has_no_gaps() -> None:
    figures = summarise([Sample(1.0, (), (1,))], seconds=1.0)
    assert (figures.gap_p50, figures.gap_p95, figures.first_p95) == (0.0, 0.0, 1.0)


@pytest.mark.parametrize(("samples", "seconds"), [([], 1.0), ([Sample(1.0, (), (1,))], 0.0)])
def test_nothing_measured_is_no_figure(samples: list[Sample], seconds: float) -> None:
    with pytest.raises(ValueError, match="nothing was measured"):
        summarise(samples, seconds)


def test_the_percentile_is_near_the_top_and_never_beyond() -> None:
    assert p95([float(i) for i in range(101)]) == pytest.approx(95.0)
    assert p95([1.0, 1.0, 9.0]) <= 9.0


def test_agreement_counts_tokens_before_the_first_difference() -> None:
    assert agreement([(1, 2, 3)], [(1, 2, 3)]) == 1.0
    assert agreement([(1, 2, 3), (4, 5, 6)], [(1, 9, 3), (4, 5, 6)]) == pytest.approx(4 / 6)
    assert agreement([(1, 2)], [(1, 2, 3, 4)]) == 0.5
    assert agreement([], []) == 0.0
