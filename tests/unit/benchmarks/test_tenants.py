"""What the benchmark of tenants asks of the figures."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.samples import Figures
from benchmarks.tenants import goals, parse

ALONE = Figures(10, 640, 20.0, 32.0, first_p50=0.1, first_p95=0.15, gap_p50=0.02, gap_p95=0.025)


def test_the_goals_are_ratios_of_beside_to_alone() -> None:
    beside = replace(ALONE, first_p50=0.21, first_p95=0.3, gap_p95=0.03)
    found = goals(ALONE, beside)
    assert [round(goal.value, 6) for goal in found] == [1.2, 2.1, 2.0]
    assert [goal.met for goal in found] == [True, False, True]


def test_a_trial_is_shorter_than_the_figure() -> None:
    trial, figure = parse(["--quick"]), parse([])
    assert trial.rounds * trial.seconds < figure.rounds * figure.seconds <= 60
    assert figure.flood == 64
