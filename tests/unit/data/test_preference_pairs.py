"""Preference pairs: every spelling becomes two answers to one prompt, and what is wrong is told by line."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest

from loramux_server.core.errors import Error
from loramux_server.core.jobs import TrainRow
from loramux_server.data.dataset import holds_pairs
from loramux_server.data.label_masks import render_marked
from loramux_server.text import TextTokenizer
from tests.datasets import load_dataset

USER = {"role": "user", "content": "Where?"}
GOOD = {"role": "assistant", "content": "Here."}
BAD = {"role": "assistant", "content": "Somewhere."}
CHAT = ("<|im_start|>assistant\n", "Here.<|im_end|>", "Somewhere.<|im_end|>")

SPELLINGS: dict[str, tuple[dict[str, Any], tuple[str, str, str]]] = {
    "trl": (
        {"prompt": "The sky is", "chosen": " blue.", "rejected": " green."},
        ("The sky is", " blue.<|im_end|>", " green.<|im_end|>"),
    ),
    "trl, no prompt": (
        {"chosen": "The sky is blue.", "rejected": "The sky is black."},
        ("The sky is", " blue.<|im_end|>", " black.<|im_end|>"),
    ),
    "trl, messages": ({"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}, CHAT),
    "trl, messages, no prompt": ({"chosen": [USER, GOOD], "rejected": [USER, BAD]}, CHAT),
    "prompt told beside": ({"prompt": "Where?", "chosen": [USER, GOOD], "rejected": [USER, BAD]}, CHAT),
    "openai": ({"input": {"messages": [USER]}, "preferred_output": [GOOD], "non_preferred_output": [BAD]}, CHAT),
}

SYSTEM = {"role": "system", "content": "Be brief."}
FIELD: dict[str, tuple[dict[str, Any], tuple[str, str, str]]] = {
    "numbers beside the messages": (
        {"prompt": [USER], "chosen": [{**USER, "id": 1}, GOOD], "rejected": [{**USER, "id": 2}, BAD]},
        CHAT,
    ),
    "times beside the messages": ({"chosen": [{**USER, "at": 1}, GOOD], "rejected": [{**USER, "at": 2}, BAD]}, CHAT),
    "binarized UltraFeedback": (
        {
            "prompt": "Where?",
            "prompt_id": "0a1b",
            "chosen": [USER, GOOD],
            "rejected": [USER, BAD],
            "messages": [USER, GOOD],
            "score_chosen": 8.5,
            "score_rejected": 3.0,
        },
        CHAT,
    ),
    "a system turn in both": (
        {"prompt": "Where?", "chosen": [SYSTEM, USER, GOOD], "rejected": [SYSTEM, USER, BAD]},
        CHAT,
    ),
    "another spelling of the prompt": (
        {"prompt": "Human: Where?", "chosen": [USER, GOOD], "rejected": [USER, BAD]},
        CHAT,
    ),
    "the prompt as messages, and whole": (
        {"prompt": [USER], "chosen": [USER, GOOD], "rejected": [USER, BAD]},
        CHAT,
    ),
    "the prompt without the system turn, and whole": (
        {"prompt": [USER], "chosen": [SYSTEM, USER, GOOD], "rejected": [SYSTEM, USER, BAD]},
        CHAT,
    ),
    "a text and answers as messages": ({"prompt": "Where?", "chosen": [GOOD], "rejected": [BAD]}, CHAT),
    "a text and answers as single messages": ({"prompt": "Where?", "chosen": GOOD, "rejected": BAD}, CHAT),
    "messages and answers as texts": ({"prompt": [USER], "chosen": "Here.", "rejected": "Somewhere."}, CHAT),
    "whole texts": (
        {"prompt": "The sky is", "chosen": "The sky is blue.", "rejected": "The sky is green."},
        ("The sky is", " blue.<|im_end|>", " green.<|im_end|>"),
    ),
    "what was made of it": (
        {"prompt": "The sky is", "completion": None, "chosen": " blue.", "rejected": " green.", "text": "The sky"},
        ("The sky is", " blue.<|im_end|>", " green.<|im_end|>"),
    ),
    "openai, with the conversation": (
        {
            "input": {"messages": [USER]},
            "preferred_output": [GOOD],
            "non_preferred_output": [BAD],
            "messages": [USER, GOOD],
        },
        CHAT,
    ),
}


def lines(*rows: Any) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def shown(row: TrainRow, tokenizer: TextTokenizer) -> tuple[str, str]:
    before, answer = render_marked(row, tokenizer)
    assert (before.trained, answer.trained) == (False, True)
    return before.text, answer.text


@pytest.mark.parametrize("name", SPELLINGS)
def test_every_spelling_is_two_answers_to_one_prompt(name: str, smollm: TextTokenizer) -> None:
    value, (end, chosen, rejected) = SPELLINGS[name]
    dataset = load_dataset(lines(value), smollm, max_length=100)
    ((row,), report) = dataset.rows, dataset.report
    assert row.rejected is not None
    (prompt, said), (same, other) = shown(row, smollm), shown(row.rejected, smollm)
    assert prompt == same
    assert prompt.endswith(end)
    assert (said, other) == (chosen, rejected)
    assert dataset.pairs
    assert report.tokens == len(row.input_ids) + len(row.rejected.input_ids)
    assert report.longest == max(len(row.input_ids), len(row.rejected.input_ids))
    assert holds_pairs(io.BytesIO(lines(value)))


@pytest.mark.parametrize("name", FIELD)
def test_field_27_the_pair_decides(name: str, smollm: TextTokenizer) -> None:
    value, (end, chosen, rejected) = FIELD[name]
    dataset = load_dataset(lines(value), smollm, max_length=100)
    (row,) = dataset.rows
    assert dataset.pairs
    assert row.rejected is not None
    (prompt, said), (same, other) = shown(row, smollm), shown(row.rejected, smollm)
    assert prompt == same
    assert prompt.endswith(end)
    assert prompt.count("Where?") == (end == CHAT[0])
    assert ("Be brief." in prompt) is ("system" in json.dumps(value))
    assert (said, other) == (chosen, rejected)
    assert holds_pairs(io.BytesIO(lines(value)))


def test_field_27_what_is_left_is_one_note(smollm: TextTokenizer) -> None:
    row, _ = FIELD["binarized UltraFeedback"]
    rows = [{**row, "prompt": f"{i}?", "chosen": [{**USER, "content": f"{i}?"}, GOOD]} for i in range(12)]
    for each in rows:
        each["rejected"] = [each["chosen"][0], BAD]
    report = load_dataset(lines(*rows), smollm, max_length=100).report
    (note,) = report.notes
    assert (note.code, note.count, note.line) == ("UNUSED_FIELDS", 12, 1)
    for name in ("messages", "prompt_id", "score_chosen", "score_rejected"):
        assert f"{name} (12 rows)" in note.text


def test_a_pair_follows_the_prompt_that_is_served(smollm: TextTokenizer) -> None:
    (row,) = load_dataset(lines(SPELLINGS["openai"][0]), smollm, max_length=100).rows
    served = smollm.encode_chat([USER])
    assert row.rejected is not None
    assert list(row.input_ids[: len(served)]) == list(row.rejected.input_ids[: len(served)]) == served
    assert row.labels.index(True) == row.rejected.labels.index(True) == len(served)


def test_tools_and_stacks_of_pairs(family: Any) -> None:
    tools = [{"type": "function", "function": {"name": "look_up"}}]
    for value in (
        {"input": {"messages": [USER], "tools": tools}, "preferred_output": [GOOD], "non_preferred_output": [BAD]},
        {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD], "tools": tools},
    ):
        dataset = load_dataset(lines({**value, "on_top_of": ["acme"]}), family("qwen"), max_length=300)
        (example,) = dataset.examples
        assert example.on_top_of is not None
        assert example.row.rejected is not None
        assert "look_up" in family("qwen").decode(example.row.rejected.input_ids)


PAIR = {"prompt": "a b", "chosen": " c", "rejected": " d"}
PROBLEMS: list[tuple[dict[str, Any], str]] = [
    ({**PAIR, "rejected": " c"}, "chosen and rejected are the same"),
    ({**PAIR, "rejected": "  "}, "rejected is empty"),
    ({"prompt": "a", "chosen": "b"}, "has no rejected; chosen and rejected go together"),
    ({"rejected": "b"}, "has no chosen"),
    ({"chosen": "one two", "rejected": "three two"}, "begin with different words, so there is no prompt"),
    ({"chosen": "same", "rejected": "same"}, "chosen and rejected are the same"),
    ({"chosen": "a b", "rejected": [USER, GOOD]}, "must both be strings or both be lists"),
    ({"prompt": [USER], "chosen": [GOOD], "rejected": [GOOD]}, "chosen and rejected are the same"),
    ({"prompt": [USER], "chosen": [GOOD], "rejected": []}, "rejected is empty"),
    ({"prompt": [USER], "chosen": [GOOD], "rejected": "x"}, "prompt and rejected must both be strings"),
    ({"prompt": "Where?", "chosen": [USER, GOOD], "rejected": [USER, GOOD], "messages": [USER]}, "are the same"),
    ({"prompt": [USER], "chosen": [GOOD], "rejected": [USER]}, "no assistant turn in rejected"),
    (
        {"chosen": [USER, GOOD], "rejected": [{**USER, "content": "Who?"}, BAD]},
        "differ from message 0 on, which must be an assistant turn in both",
    ),
    ({"chosen": [USER, GOOD], "rejected": [USER, GOOD]}, "chosen and rejected are the same"),
    ({"chosen": [USER, GOOD], "rejected": [USER]}, "differ from message 1 on"),
    (
        {"input": {"messages": [USER]}, "preferred_output": [GOOD], "non_preferred_output": "x"},
        "must be lists of messages",
    ),
    ({"input": "x", "preferred_output": [GOOD], "non_preferred_output": [BAD]}, "input must be an object"),
    ({"input": {"messages": [USER]}, "preferred_output": [GOOD]}, "has no non_preferred_output"),
    ({"prompt": "a b", "chosen": " c", "text": "a b c"}, "has no rejected"),
    ({**PAIR, "rejected": "word " * 200}, "at most 100 are allowed"),
    ({"text": "raw words"}, "is no preference pair, and line 1 is one: split the file by kind"),
]


@pytest.mark.parametrize(("row", "complaint"), PROBLEMS)
def test_each_problem_is_told_with_its_line(row: dict[str, Any], complaint: str, smollm: TextTokenizer) -> None:
    with pytest.raises(Error) as caught:
        load_dataset(lines(PAIR, row, PAIR), smollm, max_length=100)
    ((field, description),) = [(v.field, v.description) for v in caught.value.violations]
    assert field == "data[line 2]"
    assert complaint in description


def test_a_pair_among_other_rows_is_refused(smollm: TextTokenizer) -> None:
    with pytest.raises(Error) as caught:
        load_dataset(lines({"text": "raw words"}, PAIR), smollm, max_length=100)
    assert "line 2: the row is a preference pair, and line 1 is none" in caught.value.message


def test_answers_that_a_template_makes_alike_are_refused(with_template: Any) -> None:
    template = "{% for m in messages %}{{ m.content | trim }}<|im_end|>{% endfor %}"
    row = {"prompt": [USER], "chosen": [GOOD], "rejected": [{**GOOD, "content": "Here. "}]}
    with pytest.raises(Error, match="both answers of the pair have the same tokens"):
        load_dataset(lines(row), with_template(template), max_length=100)


def test_the_kind_is_seen_from_the_first_row_however_long_it_is() -> None:
    long = {**PAIR, "prompt": "word " * 300_000}
    for data, pairs in [
        (lines(PAIR), True),
        (b"\n\n" + lines(long, PAIR), True),
        (json.dumps([PAIR, PAIR], indent=1).encode(), True),
        (json.dumps([long] * 2).encode(), True),
        (lines({"text": "x"}, PAIR), False),
        (b"", False),
        (b"{", False),
        (b"\xff\xfe", False),
    ]:
        assert holds_pairs(io.BytesIO(data)) is pairs
