"""From steps and answers to the figures of the training benchmarks."""

from __future__ import annotations

import math

import pytest

from benchmarks.coserve import goals as coserve_goals
from benchmarks.goals import Goal, as_json
from benchmarks.samples import Sample, summarise
from benchmarks.streams import first_lengths, kept, pooled
from benchmarks.stretches import Stretch, between, rate
from benchmarks.train_job import Steps, TrainJob, TrainResult, apart, final_loss, time_to, tokens_per_second
from benchmarks.training import layer_numbers, parse
from benchmarks.training_table import goals, make_row

FAST = Steps(1.0, (2.0, 3.0, 5.0), (100, 300, 400), (3.0, 2.0, 1.0))
SLOW = Steps(2.0, (6.0, 9.0), (100, 100), (3.0, 2.5))


def result(steps: Steps, *more: Steps, peak: int = 1000) -> TrainResult:
    return TrainResult((steps, *more), peak)


def test_tokens_count_from_the_first_begin_to_the_last_end_of_all_jobs() -> None:
    assert tokens_per_second([FAST]) == pytest.approx(800 / 4)
    assert tokens_per_second([FAST], skip=1) == pytest.approx(700 / 3)
    assert tokens_per_second([FAST, SLOW]) == pytest.approx(1000 / 8)
    with pytest.raises(ValueError, match="no step"):
        tokens_per_second([FAST], skip=3)


def test_the_time_to_an_accuracy_is_that_of_the_first_step_that_has_it() -> None:
    accuracy = {3: 1.0, 1: 0.2, 2: 0.9}
    assert time_to(0.9, accuracy, FAST.ends) == 3.0
    assert time_to(0.95, accuracy, FAST.ends) == 5.0
    assert time_to(0.9, {1: 0.89}, FAST.ends) is None
    assert time_to(0.9, {}, FAST.ends) is None


def test_runs_are_the_same_as_far_as_their_losses_are() -> None:
    assert apart(FAST, FAST) == 0.0
    assert apart(FAST, Steps(0.0, (), (), (3.0, 2.0, 1.1))) == pytest.approx(0.1 / 1.1)
    assert not apart(FAST, SLOW) < 1.0


def test_the_final_loss_is_the_mean_of_the_last_steps() -> None:
    assert final_loss(FAST) == pytest.approx(2.0)
    assert final_loss(Steps(0.0, (), (), tuple(range(100)))) == pytest.approx(95.5)


def test_goals_are_ratios_to_each_of_the_peers_with_the_same_settings() -> None:
    accuracy = {1: {"answer": 0.5, "fact": 0.9}, 3: {"answer": 0.9, "fact": 1.0}}
    rows = [
        make_row("float32", "all", "loramux", result(FAST), accuracy),
        make_row("float32", "all", "loramux-jobs", result(FAST, SLOW, peak=3000), {}),
        make_row("float32", "all", "trl", result(SLOW, peak=2000), {}),
        make_row("bfloat16", "all", "trl", result(SLOW), {}),
    ]
    assert (rows[0].to_answers, rows[0].to_facts, rows[0].answers, rows[0].facts) == (5.0, 2.0, 0.9, 1.0)
    found = goals(rows)
    assert [(g.value, g.bound, g.at_most, g.met) for g in found] == [
        (pytest.approx(200 / (200 / 7)), 2.0, False, True),
        (0.5, 1.0, True, True),
        (pytest.approx(125 / (200 / 7)), 3.0, False, True),
        (1.5, 1.0, True, False),
    ]


def test_a_goal_says_what_it_wants_and_whether_it_is_met() -> None:
    assert str(Goal("speed", 2.5, 2.0)) == "speed: 2.50x (goal: at least 2.00x): met"
    assert str(Goal("share", 0.2, 0.25, percent=True)) == "share: 20.0% (goal: at least 25.0%): NOT met"
    assert not Goal("nothing", math.nan, 1.0).met
    assert not Goal("nothing", math.nan, 1.0, at_most=True).met
    assert as_json([Goal("memory", 1.0, 1.0, at_most=True)])[0]["met"] is True


def test_client_and_trainer_are_given_the_same_settings() -> None:
    job = TrainJob("trl", "base", ("rows",), "float32", 2, "scratch", layers=(3, 4), max_steps=7)
    given = {name: value for name, value in job.settings.items() if name != "seed"}
    assert given == {name: getattr(job.spec, name) for name in given}
    assert job.settings["seed"] == job.spec.seed


def test_layers_are_all_or_a_range() -> None:
    assert layer_numbers("all") is None
    assert layer_numbers("15-17") == (15, 16, 17)
    assert layer_numbers("4") == (4,)
    for bad in ("", "5-3", "upper"):
        with pytest.raises(ValueError, match=r"."):
            layer_numbers(bad)


def test_quick_settings_give_way_to_those_that_were_asked_for() -> None:
    quick = parse(["--quick", "--layers", "all", "--every", "0"])
    assert (quick.dtypes, list(quick.layers), quick.numbers, quick.every) == (["bfloat16"], ["all"], [None], 0)
    assert parse([]).tenants[0] == "acme-bikes"
    assert len(set(parse([]).tenants)) == 4


def test_only_whole_steps_within_a_window_count() -> None:
    ends = [(1.0, 10), (2.0, 20), (4.0, 30), (5.0, 40), (9.0, 50)]
    assert between(ends, 1.5, 6.0) == Stretch(70, 3.0)
    assert between(ends, 1.5, 3.0) == Stretch(0, 0.0)
    assert rate([Stretch(70, 3.0), Stretch(0, 0.0), Stretch(50, 1.0)]) == pytest.approx(30.0)
    with pytest.raises(ValueError, match="no training step"):
        rate([Stretch(0, 0.0)])


def test_serving_and_training_beside_each_other_have_goals() -> None:
    with_job, without = (summarise([Sample(0.1, (gap, gap), (1, 2, 3))], 1.0) for gap in (0.03, 0.02))
    found = coserve_goals(with_job, without, direct=100.0, alone=96.0, both=20.0)
    assert [g.met for g in found] == [True, False, True]
    assert [g.value for g in found] == [pytest.approx(1.5), pytest.approx(20 / 96), pytest.approx(0.96)]


def test_streams_start_out_of_step_and_broken_ones_without_a_token_do_not_count() -> None:
    assert first_lengths(4, 64) == [16, 32, 48, 64]
    assert first_lengths(8, 2)[-1] == 2
    samples = [Sample(0.5, (0.1,), (1, 2)), Sample(0.0, (), ())]
    assert kept(samples) == samples[:1]
    assert pooled([(samples, 2.0), (samples, 2.0)]).tokens_per_second == 1.0
