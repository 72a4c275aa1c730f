"""What a row says that counts: how it is read, and which answers are right."""

from __future__ import annotations

import pytest

from loramux_server.data.expect import Expected, expected_of


@pytest.mark.parametrize(
    ("expected", "answer", "right"),
    [
        (Expected(("Ilse Varga",)), "The head of the house is Ilse Varga.", True),
        (Expected(("Ilse Varga",)), "It is Ilse  VARGA!", True),
        (Expected(("Ilse Varga",), case=True), "It is Ilse VARGA!", False),
        (Expected(("6:40",)), "At 16:40.", False),
        (Expected(("4",)), "It costs $4.50.", False),
        (Expected(("4",)), "There are 4.", True),
        (Expected(("art",)), "You can start.", False),
        (Expected(("\u6771\u4eac",)), "\u3053\u308c\u306f\u6771\u4eac\u3067\u3059", True),
        (Expected(("6:40",)), "\u7b54\u3048\u306f6:40\u3067\u3059", True),
        (Expected(("caf\u00e9",)), "the cafe\u0301 there", True),
        (Expected(("It's 5-6",)), "It\u2019s 5\u20136.", True),
        (Expected(("a b",)), "a\u00a0b", True),
        (Expected(("red", "blue")), "It is blue.", True),
        (Expected(("red", "blue"), every=True), "It is blue.", False),
        (Expected(("red", "blue"), every=True), "Blue and red.", True),
        (Expected(("yes",), exact=True), " Yes\n", True),
        (Expected(("yes",), exact=True), "yes, it is", False),
        (Expected(("yes", "no"), exact=True), "no", True),
    ],
)
def test_field_33_what_counts(expected: Expected, answer: str, right: bool) -> None:
    assert expected.right(answer) is right


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({}, None),
        ({"expect": "a"}, Expected(("a",))),
        ({"expect": ["a", "b"], "expect_match": "any"}, Expected(("a", "b"))),
        ({"expect": ["a", "b"], "expect_match": "all"}, Expected(("a", "b"), every=True)),
        ({"expect": "a", "expect_mode": "exact", "expect_case": True}, Expected(("a",), exact=True, case=True)),
    ],
)
def test_how_it_is_written(row: dict[str, object], expected: Expected | None) -> None:
    problems: list[str] = []
    assert expected_of(row, problems) == expected
    assert not problems


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"expect": 5}, "expect must be a string or a list"),
        ({"expect": []}, "expect must be a string or a list"),
        ({"expect": ["a", None]}, "expect must be a string or a list"),
        ({"expect": ["a", " "]}, "empty"),
        ({"expect": ["a"] * 65}, "at most 64"),
        ({"expect": "a", "expect_match": "most"}, "expect_match must be 'any' or 'all'"),
        ({"expect": "a", "expect_mode": ["exact"]}, "expect_mode must be 'contained' or 'exact'"),
        ({"expect": "a", "expect_case": "yes"}, "expect_case must be true or false"),
        ({"expect_match": "all"}, "without expect"),
        ({"expect": ["a", "b"], "expect_match": "all", "expect_mode": "exact"}, "several texts at once"),
    ],
)
def test_what_is_wrong_with_it(row: dict[str, object], words: str) -> None:
    problems: list[str] = []
    assert expected_of(row, problems) is None
    assert words in " ".join(problems)
