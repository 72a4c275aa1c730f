"""The page that becomes an adapter: every question is answered by it, and no held-out question is trained on."""

from __future__ import annotations

import re

from examples.common.rows import answer, question, read_rows
from examples.shorter_prompts.run import DATA
from examples.shorter_prompts.training import unanswered
from tools.score import accepted

TRAIN, HELD_OUT = (read_rows(DATA / f"{name}.jsonl") for name in ("train", "held-out"))


def words(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold()))


def test_held_out_questions_are_other_ones() -> None:
    trained = {words(question(row)) for row in TRAIN}
    assert len(trained) == len(TRAIN) == 112
    assert not trained & {words(question(row)) for row in HELD_OUT}


def test_every_fact_is_asked_in_both() -> None:
    assert {answer(row) for row in TRAIN} == {answer(row) for row in HELD_OUT}


def test_the_page_and_the_reference_say_what_is_expected() -> None:
    page = (DATA / "page.txt").read_text(encoding="utf-8")
    for row in HELD_OUT:
        assert accepted(answer(row), row["expect"]), row
        assert accepted(page, row["expect"]), row


def test_the_teacher_is_not_given_an_answer() -> None:
    assert all(row["messages"][-1]["role"] == "user" for row in unanswered(TRAIN))
