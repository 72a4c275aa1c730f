"""Held-out rows that are training rows, found by what they ask and what they answer."""

from __future__ import annotations

from typing import Any

import pytest

from loramux_server.data.overlap import MANY_ANSWERS, Asked, TrainedAnswers, asked_for
from loramux_server.data.rows import parse_row


def asked(row: dict[str, Any]) -> Asked:
    return asked_for(parse_row(1, row).content)


def chat(*turns: str) -> dict[str, Any]:
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[i % 2], "content": text} for i, text in enumerate(turns)]}


@pytest.mark.parametrize(
    ("trained", "held_out", "same"),
    [
        (chat("When?", "At 6."), chat("When?", "At 6."), "rows"),
        (chat("When?", "At 6."), chat("When? ", "At  6."), "rows"),
        (chat("When?", "At 6."), chat("When?", "Six."), "prompts"),
        (chat("When?", "At 6."), chat("Where?", "At 6."), ""),
        (chat("When?", "At 6.", "And?", "No."), chat("When?", "At 6."), "rows"),
        (chat("When?", "At 6."), chat("When?", "At 6.", "And?", "No."), ""),
        ({"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": "b", "expect": "b"}, "rows"),
        ({"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": "c"}, "prompts"),
        ({"text": "a b"}, {"text": "a  b"}, "rows"),
        ({"text": "a b"}, {"text": "a c"}, ""),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, {"prompt": "a", "chosen": "d", "rejected": "c"}, "prompts"),
    ],
)
def test_field_31_what_is_the_same(trained: dict[str, Any], held_out: dict[str, Any], same: str) -> None:
    found = TrainedAnswers([asked(trained)]).overlap([(7, asked(held_out))])
    assert (found.rows, found.prompts) == ({7} if same == "rows" else set(), {7} if same == "prompts" else set())


def test_an_open_prompt_has_no_answer_of_its_own() -> None:
    rows = [asked({"prompt": "Write a poem.", "completion": f"poem {i}"}) for i in range(MANY_ANSWERS)]
    new = asked({"prompt": "Write a poem.", "completion": "another"})
    assert not TrainedAnswers(rows).overlap([(1, new)]).lines
    assert TrainedAnswers(rows[1:]).overlap([(1, new)]).prompts == {1}
    assert TrainedAnswers(rows).overlap([(1, rows[0])]).rows == {1}
