"""Rows of a distillation: what the student reads, what the teacher reads, and what is refused with its line."""

from __future__ import annotations

import json
from typing import Any

import pytest

from loramux_server.core.jobs import TrainRow
from loramux_server.data.dataset import Dataset, check_dataset
from loramux_server.data.teacher_rows import Teaching
from loramux_server.text import TextTokenizer
from tests.datasets import load_dataset

CONTEXT = "The mill opens at 6:40."
ASKED = [{"role": "user", "content": "When does the mill open?"}]
ANSWERED = [*ASKED, {"role": "assistant", "content": "At 6:40."}]


def load(tokenizer: TextTokenizer, *rows: dict[str, Any], **teaching: Any) -> Dataset:
    data = "\n".join(json.dumps(row) for row in rows).encode()
    return load_dataset(data, tokenizer, max_length=200, teaching=Teaching(**{"context": CONTEXT, **teaching}))


def learned(row: TrainRow) -> list[int]:
    return [id for id, label in zip(row.input_ids, row.labels, strict=True) if label]


def read_by_teacher(row: TrainRow, tokenizer: TextTokenizer) -> str:
    assert row.teacher is not None
    return tokenizer.decode(row.teacher.input_ids, skip_special_tokens=False)


@pytest.mark.parametrize("row", [{"messages": ANSWERED}, {"prompt": "When?", "completion": " At 6:40."}])
def test_the_teacher_reads_the_context_and_the_same_answer(smollm: TextTokenizer, row: dict[str, Any]) -> None:
    (made,) = load(smollm, row).rows
    assert made.teacher is not None
    assert CONTEXT in read_by_teacher(made, smollm)
    assert CONTEXT not in smollm.decode(made.input_ids)
    assert learned(made) == learned(made.teacher) != []
    plain = load_dataset(json.dumps(row).encode(), smollm, max_length=200).rows[0]
    assert (made.input_ids, made.labels) == (plain.input_ids, plain.labels)


def test_a_context_is_the_system_turn_as_a_request_would_have_it(smollm: TextTokenizer) -> None:
    asked = [{"role": "system", "content": "Be brief."}, *ANSWERED]
    (made,) = load(smollm, {"messages": asked}).rows
    told = [{"role": "system", "content": f"{CONTEXT}\n\nBe brief."}, *ASKED]
    assert made.teacher is not None
    served = smollm.encode_chat(told)
    assert list(made.teacher.input_ids[: len(served)]) == served


def test_a_rows_own_context_takes_the_place_of_the_jobs(smollm: TextTokenizer) -> None:
    found = load(
        smollm,
        {"messages": ANSWERED, "context": "It opens at noon."},
        {"messages": ANSWERED},
        {"messages": ANSWERED, "context": ""},
    )
    own, jobs, none = found.rows
    assert "noon" in read_by_teacher(own, smollm)
    assert CONTEXT not in read_by_teacher(own, smollm)
    assert CONTEXT in read_by_teacher(jobs, smollm)
    assert none.teacher is not None
    assert none.teacher.input_ids == none.input_ids
    assert found.report.duplicates == 0  # the contexts differ
    assert found.report.teacher_tokens == sum(len(row.teacher.input_ids) for row in found.rows if row.teacher)
    assert found.report.longest_taught == max(len(row.teacher.input_ids) for row in found.rows if row.teacher)
    assert not any(note.code == "UNUSED_FIELDS" for note in found.report.notes)


@pytest.mark.parametrize(
    "row", [{"messages": ASKED}, {"prompt": ASKED}, {"prompt": "When?"}, {"prompt": "Q", "completion": None}]
)
def test_a_prompt_alone_waits_for_an_answer(smollm: TextTokenizer, row: dict[str, Any]) -> None:
    """Both texts end where an answer begins, exactly as a request is asked."""
    found = load(smollm, row)
    (made,) = found.rows
    assert made.teacher is not None
    assert not any(made.labels + made.teacher.labels)
    prompt = row.get("messages", row.get("prompt"))
    wanted = smollm.encode(prompt) if isinstance(prompt, str) else smollm.encode_chat(ASKED)
    assert list(made.input_ids) == wanted
    assert (found.report.unanswered, found.report.trained_tokens) == (1, 0)
    assert "UNANSWERED_ROWS" in [note.code for note in found.report.notes]


def test_a_conversation_that_goes_on_is_answered_at_its_end(smollm: TextTokenizer) -> None:
    """Its earlier answers are what was said; nothing of them is learned."""
    (made,) = load(smollm, {"messages": [*ANSWERED, {"role": "user", "content": "And on Sunday?"}]}).rows
    assert not any(made.labels)
    assert smollm.decode(made.input_ids).rstrip().endswith("assistant")


def test_general_rows_are_taught_by_the_base_as_it_is(smollm: TextTokenizer) -> None:
    (made,) = load(smollm, {"messages": ANSWERED}, context="", required=False).rows
    assert made.teacher is not None
    assert made.teacher.input_ids == made.input_ids


@pytest.mark.parametrize(
    ("row", "options", "words"),
    [
        ({"messages": ANSWERED}, {"context": ""}, "the row has no context, and the job has none"),
        ({"messages": ANSWERED, "context": 3}, {}, "context must be a string"),
        ({"text": "The mill."}, {}, "text has no prompt that a context could stand before"),
        ({"prompt": "q", "chosen": " a", "rejected": " b"}, {}, "is a preference pair"),
        ({"messages": ANSWERED, "context": "word " * 300}, {}, "with the context before it: the row has"),
        ({"messages": ASKED, "context": "word " * 300}, {}, "with the context before it: the row has"),
        ({"prompt": "  "}, {}, "prompt is empty"),
        ({"messages": []}, {}, "messages must be a list with at least one message"),
    ],
)
def test_what_cannot_be_taught_is_refused_by_line(
    smollm: TextTokenizer, row: dict[str, Any], options: dict[str, Any], words: str
) -> None:
    good = {"messages": ANSWERED, "context": "c"}
    data = f"{json.dumps(good)}\n{json.dumps(row)}".encode()
    _, problems = check_dataset(data, smollm, max_length=200, teaching=Teaching(**{"context": CONTEXT, **options}))
    ((line, said),) = problems.listed()
    assert line == 2
    assert words in said


def test_without_a_distillation_a_prompt_alone_is_a_problem_and_a_context_is_not_used(smollm: TextTokenizer) -> None:
    data = b'{"prompt": "When?"}\n' + json.dumps({"messages": ANSWERED, "context": CONTEXT}).encode()
    found, problems = check_dataset(data, smollm, max_length=200)
    assert [line for line, _ in problems.listed()] == [1]
    assert found.rows[0].teacher is None
    assert "UNUSED_FIELDS" in [note.code for note in found.report.notes]
