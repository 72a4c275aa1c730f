"""The ticket example: its data are split honestly, and its figures are those of the textbooks."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from examples.common.rows import Row, answer, question, read_rows
from examples.task.figures import calibration_error, confusion, f1_scores, fitted_temperature, probabilities
from examples.task.labels import LABELS, few_shot
from examples.task.run import DATA


def rows(name: str) -> list[Row]:
    return read_rows(DATA / f"{name}.jsonl")


def words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", text.casefold()))


def test_each_label_has_as_many_tickets_as_the_others() -> None:
    for name, each in (("train", 16), ("calibration", 4), ("test", 8)):
        assert Counter(map(answer, rows(name))) == dict.fromkeys(LABELS, each)


def test_no_ticket_of_the_test_is_near_one_that_is_trained() -> None:
    """Not the same, and not the same but for some words."""
    trained = [words(question(row)) for name in ("train", "calibration") for row in rows(name)]
    for row in rows("test"):
        mine = words(question(row))
        nearest = max(len(mine & other) / len(mine | other) for other in trained)
        assert nearest < 0.6, question(row)


def test_the_prompt_shows_two_tickets_of_each_label_and_none_of_the_test() -> None:
    prompt = few_shot(rows("train"))
    assert all(prompt.count(f"Label: {label}") == 2 for label in LABELS)
    assert not any(question(row) in prompt for row in rows("test"))


def test_f1_and_the_confusion_matrix_count_answers_that_are_no_label() -> None:
    wanted, given = ["a", "a", "b", "b"], ["a", "b", "b", "?"]
    assert f1_scores(["a", "b", "c"], wanted, given) == pytest.approx({"a": 2 / 3, "b": 1 / 2})
    assert confusion(["a", "b", "c"], wanted, given) == [[1, 1, 0, 0], [0, 1, 0, 1], [0, 0, 0, 0]]


def test_the_calibration_error_is_the_distance_of_confidence_and_accuracy() -> None:
    sure = [[0.95, 0.05]] * 10
    assert calibration_error(sure, [0] * 10) == pytest.approx(0.05)
    assert calibration_error(sure, [0] * 5 + [1] * 5) == pytest.approx(0.45)
    mixed = [[0.95, 0.05], [0.65, 0.35]]
    assert calibration_error(mixed, [0, 1]) == pytest.approx((0.05 + 0.65) / 2)


def test_the_temperature_lowers_confidence_that_is_too_high() -> None:
    """Right in six of ten, with log-probabilities that say 99 of 100."""
    logprobs, wanted = [[0.0, -4.6]] * 10, [0] * 6 + [1] * 4
    temperature = fitted_temperature(logprobs, wanted)
    assert probabilities(logprobs[0], temperature)[0] == pytest.approx(0.6, abs=0.02)
    assert sum(probabilities(logprobs[0])) == pytest.approx(1)
