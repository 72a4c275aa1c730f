"""Requests with millions of bad values hold nobody up: they are refused before each is looked at or listed."""

from __future__ import annotations

import json
from typing import Any

import pytest

from loramux_server.core.errors import Error
from loramux_server.http.bodies.fields import MOST_PROBLEMS, read
from loramux_server.http.bodies.names import MOST_CHARACTERS, parse_model
from loramux_server.http.exchanges.exchange import MOST_DIGITS, MOST_VALUES, json_of
from loramux_server.http.openai.responses.schema import ResponseRequest
from loramux_server.http.openai.schema import ChatRequest, CompletionRequest


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"messages": [{}] * (MOST_PROBLEMS + 1)}, f"{MOST_PROBLEMS + 2} fields"),
        ({"model": "x", "messages": [{}, {}]}, r"messages\[0\].role: is missing; messages\[1\].role: is missing"),
    ],
)
def test_bad_fields_are_counted_before_they_are_listed(body: Any, words: str) -> None:
    with pytest.raises(Error, match=words) as caught:
        read(ChatRequest, body)
    assert len(caught.value.message) < 200


def test_what_is_wrong_is_told_without_words_of_python() -> None:
    with pytest.raises(Error) as caught:
        read(CompletionRequest, {"model": 5, "prompt": "x", "suffix": "y", "echo": True})
    assert {v.field: v.description for v in caught.value.violations} == {
        "model": "must be a valid string",
        "suffix": "is not taken here; leave it out",
        "echo": "must be false",
    }


@pytest.mark.parametrize("unit", [b"[]", b"0", b'""', b'",[{"', b'"\\\\"', b'{"a":[1,"b\\""]}', b"1e1"])
def test_values_are_counted_before_any_is_made(unit: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    body = b"[" + b",".join([unit] * (MOST_VALUES + 1)) + b"]"
    monkeypatch.setattr("json.loads", None)
    with pytest.raises(Error, match=f"the body has more than {MOST_VALUES} values"):
        json_of(body)


@pytest.mark.parametrize(
    "value",
    [
        [0] * MOST_VALUES,
        ",[{" * MOST_VALUES,
        '",[{\\' * MOST_VALUES,
        {'a"': ["\\", ",", '"', "ü\U0001f4a9"]},
        [],
        [10**299, -(10**299)],
    ],
)
def test_what_texts_hold_is_no_value(value: Any) -> None:
    for plain in (True, False):
        assert json_of(json.dumps(value, ensure_ascii=plain).encode()) == value


@pytest.mark.parametrize("number", ["9" * (MOST_DIGITS + 1), "-1" + "0" * 400])
def test_whole_numbers_beyond_all_floats_are_refused(number: str) -> None:
    for field in ("seed", "weight"):
        with pytest.raises(Error, match="a whole number of more than 300 digits"):
            json_of(f'{{"{field}": [{number}]}}'.encode())


@pytest.mark.parametrize(
    "half", [b'"\xed\xa0\x80"', b'"\\uD800"', '"\\ud800"'.encode("utf-16"), '"\\ud800"'.encode("utf-32")]
)
def test_halves_of_characters_are_refused_however_they_are_written(half: bytes) -> None:
    with pytest.raises(Error, match="not JSON"):
        json_of(half)


def test_long_names_of_models_are_not_taken_apart() -> None:
    longest = "+".join([f"{'a' * 64}@{'b' * 64}:0.123456789012345678"] * 8)
    assert len(parse_model(longest)) == 8
    with pytest.raises(Error, match=rf"model: has 4000000 characters, at most {MOST_CHARACTERS}"):
        parse_model("a+" * 2_000_000)


def test_items_of_a_response_are_looked_at_up_to_the_first_bad_one() -> None:
    """Each takes Python's time, not only pydantic's."""
    for body in (
        {"model": "x", "input": [{}] * 10_000},
        {"model": "x", "input": [{"role": "user", "content": [{"type": "input_image"}] * 10_000}]},
        {"model": "x", "input": "x", "tools": [{"type": "web_search"}] * 10_000},
        {"model": "x", "input": [{"role": "user", "content": "x"}] * 10_001},
    ):
        with pytest.raises(Error) as caught:
            read(ResponseRequest, body)
        assert len(caught.value.violations) <= 2
