"""The losses of jobs as curves of bounded length."""

from __future__ import annotations

import pytest

from loramux_server.core.jobs import JobState, TrainEvent, TrainEventType
from loramux_server.telemetry.losses import MOST_POINTS, LossCurves


def tell(curves: LossCurves, *steps: int, job: str = "j") -> None:
    for step in steps:
        curves.job_event(job, TrainEvent(TrainEventType.STEP, step=step, metrics={"loss": float(step)}))


@pytest.mark.parametrize("last", [1, MOST_POINTS, MOST_POINTS + 1, 1000, 12_345])
def test_a_curve_is_means_of_stretches_of_equal_length(last: int) -> None:
    curves = LossCurves()
    tell(curves, *range(1, last + 1))
    found = curves.of("j")
    assert MOST_POINTS / 2 < len(found) <= MOST_POINTS or len(found) == last
    stride = found[1] - found[0] if len(found) > 1 else 1
    assert [found[0] + i * stride for i in range(len(found) - 1)] == [*found[:-1]]
    assert found[0] == (1 + stride) / 2


def test_steps_that_are_done_again_take_the_place_of_what_they_were() -> None:
    curves = LossCurves()
    tell(curves, 1, 2, 3, 4, 5)
    curves.job_event("j", TrainEvent(TrainEventType.STEP, step=3, metrics={"loss": 30.0}))
    assert curves.of("j") == (1.0, 2.0, 30.0)
    tell(curves, 900_000)  # as far as a job may be when the server starts
    assert len(curves.of("j")) == 2


def test_a_curve_goes_with_its_job() -> None:
    curves = LossCurves()
    tell(curves, 5, 6)
    tell(curves, 1, job="k")
    curves.job_event("j", TrainEvent(TrainEventType.EVALUATION, step=6, metrics={"loss": 9.0}))
    assert curves.of("j") == (5.0, 6.0)
    curves.job_moved("j", JobState.EVALUATING)
    assert curves.of("j")
    curves.job_moved("j", JobState.SUCCEEDED)
    assert curves.of("j") == ()
    assert curves.of("k") == (1.0,)
