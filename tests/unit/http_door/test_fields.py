"""Requests with millions of bad values hold nobody up: they are refused before each is looked at or listed."""

from __future__ import annotations

from typing import Any

import pytest

from loramux_server.core.errors import Error
from loramux_server.http.fields import MOST_PROBLEMS, MOST_VALUES, read
from loramux_server.http.openai.responses.schema import ResponseRequest
from loramux_server.http.openai.schema import ChatRequest

MANY: Any = [{}] * (MOST_VALUES + 1)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"messages": MANY}, "more than"),
        ({"messages": [{"role": "user", "content": MANY}]}, "more than"),
        ({str(i): [[]] for i in range(MOST_VALUES // 2 + 1)}, "more than"),
        ({"messages": [{}] * (MOST_PROBLEMS + 1)}, f"{MOST_PROBLEMS + 2} fields"),
        ({"messages": [], "adapters": [{"name": "a", "weight": 10**400}]}, "more than 300 digits"),
        ({"messages": [], "logit_bias": {"1": -(10**400)}}, "more than 300 digits"),
        ({"model": "x", "messages": [{}, {}]}, r"messages\[0\].role: is missing; messages\[1\].role: is missing"),
    ],
)
def test_bad_values_are_counted_before_they_are_listed(body: Any, words: str) -> None:
    with pytest.raises(Error, match=words) as caught:
        read(ChatRequest, body)
    assert len(caught.value.message) < 200


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
