"""A bound says what lies in it, and its words say the same."""

from __future__ import annotations

import math

import pytest

from loramux_server.core.bounds import SAMPLING, SEED, WEIGHT, Bound, text_violations, too_many


@pytest.mark.parametrize(
    ("bound", "inside", "outside", "words"),
    [
        (SAMPLING["temperature"], (0, 10.0), (-1e-9, 10.5, math.nan, math.inf), "between 0 and 10 (0 is greedy)"),
        (SAMPLING["top_p"], (1e-9, 1), (0, 0.0, 1.01, math.nan), "above 0 and at most 1 (1 is off)"),
        (WEIGHT, (-100, -0.0, 100.0), (100.1, 10**400, -(10**400), -math.inf), "between -100 and 100"),
        (SEED, (-(2**63), 2**63 - 1), (2**63,), f"between {-(2**63)} and {2**63 - 1}"),
    ],
)
def test_what_lies_in_a_bound(bound: Bound, inside: tuple[float, ...], outside: tuple[float, ...], words: str) -> None:
    assert all(value in bound and not list(bound.violations("x", value)) for value in inside)
    assert not any(value in bound for value in outside)
    assert str(bound) == words
    (violation,) = bound.violations("x", outside[0])
    assert (violation.field, violation.description.partition("; ")[2]) == ("x", f"it must be {words}")


def test_texts_and_counts() -> None:
    assert [v.description for v in text_violations("x", "ä" * 3, 5)] == ["has 6 bytes, at most 5 are allowed"]
    assert [v.description for v in text_violations("x", "\ud800", 5)] == ["is not valid Unicode (lone surrogate)"]
    assert [v.description for v in text_violations("x", "", 5)] == ["is empty"]
    assert not list(text_violations("x", "äa", 3))
    assert not list(too_many("x", 3, 3, "entries"))
    assert len(list(too_many("x", 4, 3, "entries"))) == 1
