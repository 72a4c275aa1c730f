"""Answers that are called bad, rows of other tools, rows of lists: told once, by name, and never trained on."""

from __future__ import annotations

import json
from typing import Any

import pytest

from loramux_server.core.errors import Error
from loramux_server.data.dataset import Dataset, check_dataset
from loramux_server.text import TextTokenizer
from tests.datasets import load_dataset

GOOD = {"prompt": "Where?", "completion": " Here."}
CHAT = {"messages": [{"role": "user", "content": "Where?"}, {"role": "assistant", "content": "Here."}]}


def lines(*rows: Any) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


@pytest.fixture
def check(smollm: TextTokenizer) -> Any:
    def call(data: bytes) -> tuple[Dataset, list[tuple[int, str]]]:
        dataset, problems = check_dataset(data, smollm, max_length=200)
        return dataset, problems.listed()

    return call


@pytest.mark.parametrize(
    "said",
    [
        *({"label": False}, {"label": 0}, {"label": "False"}, {"label": "0"}, {"kto_tag": False}, {"Label": -1}),
        *({"rating": 1}, {"rating": "2"}, {"stars": 1.0}, {"score": 0.1}, {"score": -3}, {"reward": -0.2}),
        *({"rating": "1/5"}, {"rating": "2 out of 10"}, {"rating": "★☆☆☆☆"}, {"stars": "1 star"}, {"quality": "low"}),
        *({"feedback": "👎🏽"}, {"is_rejected": True}, {"hallucination": True}, {"verdict": "unhelpful"}),
        *({"thumbs_up": False}, {"thumbs-down": True}, {"feedback": "negative"}, {"is_correct": False}, {"weight": 0}),
    ],
)
@pytest.mark.parametrize("row", [GOOD, CHAT], ids=["completion", "messages"])
def test_field_28_answers_called_bad_are_refused(said: dict[str, Any], row: dict[str, Any], check: Any) -> None:
    dataset, ((line, description),) = check(lines({**row, "id": 1}, {**row, **said}))
    assert [example.line for example in dataset.examples] == [1]
    (name,) = said
    assert line == 2
    assert description.startswith(f"{name} is ")
    assert "must not be learned as a good one" in description
    assert "loramux datasets convert" in description


@pytest.mark.parametrize(
    "row",
    [
        *({**GOOD, "label": True}, {**GOOD, "label": 1}, {**GOOD, "rating": 5}, {**CHAT, "score": 0.9}),
        {**GOOD, "label": None},
        {**CHAT, "label": "billing"},  # a class
        *({"text": "It rained.", "label": 0}, {"text": "It rained.", "sentiment": "negative"}),
        {"prompt": "a", "chosen": " b", "rejected": " c", "score": 0.0, "label": False},
        {"prompt": "a", "chosen": " b", "rejected": " c", "score_chosen": 5, "score_rejected": 5},
        *(
            {**GOOD, "rating": "4/5"},
            {**GOOD, "rating": "8 of 10"},
            {**GOOD, "rating": "★★★★☆"},
            {**GOOD, "label": "low"},
        ),
    ],
)
def test_field_28_other_rows_are_taken(row: dict[str, Any], check: Any) -> None:
    dataset, problems = check(lines(row))
    assert (len(dataset.examples), problems) == (1, [])


def test_field_28_a_rating_is_read_against_its_scale(check: Any) -> None:
    low, high = ({**GOOD, "score": score} for score in (3, 9))
    dataset, ((line, description),) = check(lines(low, high))
    assert (line, [e.line for e in dataset.examples]) == (1, [2])
    assert "score is 3 (of 10)" in description
    assert check(lines(low, {**GOOD, "score": 4}))[1] == []  # of 5


@pytest.mark.parametrize(
    "scores",
    [
        {"score_chosen": 1, "score_rejected": 5},
        {"chosen-rating": "2/5", "rejected-rating": "3/5"},
        {"reward_chosen": -2.5, "reward_rejected": -1.0},
    ],
)
def test_field_28_ratings_that_turn_a_pair_round_are_refused(scores: dict[str, Any], check: Any) -> None:
    pair = {"prompt": "Where?", "chosen": " Here.", "rejected": " There."}
    dataset, ((line, description),) = check(lines({**pair, "id": 1}, {**pair, **scores}))
    assert (line, [example.line for example in dataset.examples]) == (2, [1])
    better, worse = scores
    assert description.startswith(f"{better} is ")
    assert f"below {worse} with" in description


def test_field_28_a_column_is_told_once(check: Any) -> None:
    dataset, problems = check(lines(*({**GOOD, "label": i % 2 == 0} for i in range(100))))
    ((line, description),) = problems
    assert (line, len(dataset.examples)) == (2, 50)
    assert "label is false, so the answer is called bad, as 49 more rows are" in description


@pytest.mark.parametrize(
    ("row", "format"),
    [
        ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, "ShareGPT"),
        ({"messages": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, "ShareGPT"),
        ({"instruction": "Add.", "input": "1 2", "output": "3"}, "Alpaca"),
        ({"question": "q", "answer": "a"}, "question and answer"),
        ({"query": "q", "response": "a", "id": 7}, "question and answer"),
        ({"input": "q", "output": "a"}, "question and answer"),
        ({"Question": "q", "ANSWER": "a"}, "question and answer"),
        ({"conversations": '[{"from": "human", "value": "q"}]'}, "ShareGPT"),
        ({"messages": [{"role": "human", "content": "q"}, {"role": "ai", "content": "a"}]}, "ShareGPT"),
        (
            {"prompt": "q", "chosen": [{"from": "gpt", "value": "a"}], "rejected": [{"from": "gpt", "value": "b"}]},
            "ShareGPT",
        ),
        ({"system": "s", "question": "q", "chosen": "a", "rejected": "b"}, "preferences with a question"),
    ],
)
def test_field_29_other_formats_are_named_once(row: dict[str, Any], format: str, check: Any) -> None:
    dataset, problems = check(lines(*[row] * 50))
    ((line, description),) = problems
    assert (line, dataset.examples) == (1, ())
    assert f"the rows are in the format '{format}'" in description
    assert "loramux datasets convert FILE (50 rows)" in description


@pytest.mark.parametrize("row", [{"Prompt": "q", "Completion": " a"}, {"messages": json.dumps(CHAT["messages"])}])
def test_field_29_rows_of_another_spelling_are_named(row: dict[str, Any], check: Any) -> None:
    ((line, description),) = check(lines(row, row))[1]
    assert line == 1
    assert "the rows are loramux's but for their spelling" in description
    assert "loramux datasets convert FILE (2 rows)" in description
    ((_, description),) = check(lines({"Prompt": "", "completion": "a"}))[1]
    assert "spelling" not in description  # its own problem is told


def test_field_29_files_that_were_put_together_keep_their_marks(check: Any) -> None:
    marked = b"\xef\xbb\xbf" + lines(GOOD)
    dataset, problems = check(marked + marked)
    assert ([example.line for example in dataset.examples], problems) == ([1, 2], [])


def test_field_29_rows_that_share_a_line_are_numbered(smollm: TextTokenizer) -> None:
    rows = [{"text": f"number {i}"} for i in range(20)]
    data = json.dumps(rows).encode()
    dataset = load_dataset(data, smollm, max_length=100)
    assert [example.line for example in dataset.examples] == list(range(1, 21))
    assert dataset.report.rows == 20
    with pytest.raises(Error) as caught:
        load_dataset(json.dumps([*rows[:6], {"text": 5}, 3]).encode(), smollm, max_length=100)
    assert [(v.field, v.description) for v in caught.value.violations] == [
        ("data[row 7]", "text must be a string"),
        ("data[row 8]", "the row is a number, not a JSON object"),
    ]
    assert "row 7: text must be a string" in caught.value.message
