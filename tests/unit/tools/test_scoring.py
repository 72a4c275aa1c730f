"""The scoring rules accept what counts and nothing that only looks like it."""

from __future__ import annotations

import pytest

from tools.score import (
    STYLES,
    accepted,
    fact_kept,
    format_json,
    format_letter,
    json_body,
    letter_body,
    stack_held,
    whole_answer,
)


@pytest.mark.parametrize(
    ("answer", "fact"),
    [
        ("We open at 8:15 every morning.", "8:15"),
        ("It costs $17.", "$17"),
        ("It costs $5.80, please.", "$5.80"),
        ("the GUSTAV\nstarter", "gustav"),
        ("up to 36  hours ahead", "36 hours"),
        ("Take bus 42", "bus 42"),
        ("It\u2019s a doctor\u2019s note", "a doctor's note"),
        ("At 8:15, 9:15 and 10:15.", "9:15"),
    ],
)
def test_a_fact_counts_wherever_it_stands(answer: str, fact: str) -> None:
    assert fact_kept(answer, fact)


@pytest.mark.parametrize(
    ("answer", "fact"),
    [
        ("It costs $17.50.", "$17"),
        ("It costs $170.", "$17"),
        ("It costs $17,000.", "$17"),
        ("It costs A$17.", "$17"),
        ("at 18:15", "8:15"),
        ("at 4:08:15", "08:15"),
        ("for 115 years", "15 years"),
        ("for 1.15 years", "15 years"),
        ("in 19871", "1987"),
        ("Gustavo", "Gustav"),
        ("36 long hours", "36 hours"),
        ("", "Gustav"),
    ],
)
def test_a_part_of_something_else_does_not_count(answer: str, fact: str) -> None:
    assert not fact_kept(answer, fact)


def test_a_whole_answer_is_the_expected_sentence_alone() -> None:
    assert whole_answer(" We open at 8:15.\n", "We open at 8:15.")
    assert not whole_answer("We open at 8:15. See you!", "We open at 8:15.")
    assert not whole_answer("we open at 8:15.", "We open at 8:15.")


def test_any_accepted_word_answers_a_generic_question() -> None:
    assert accepted("It is four.", ["4", "four"])
    assert not accepted("It is fourteen.", ["4", "four"])


@pytest.mark.parametrize("name", sorted(STYLES))
@pytest.mark.parametrize("text", ["We open at 8:15.", 'The book is called "Slow Crust".', "Café, 20 °C"])
def test_a_style_reads_what_it_writes(name: str, text: str) -> None:
    style = STYLES[name]
    assert style.body(style.render(text)) == text
    assert style.body(f"\n{style.render(text)} ") == text


@pytest.mark.parametrize("name", sorted(STYLES))
def test_a_plain_answer_has_no_style(name: str) -> None:
    assert STYLES[name].body("We open at 8:15.") is None


def test_styles_do_not_pass_for_each_other() -> None:
    for name, style in STYLES.items():
        others = [other for other in STYLES.values() if other.name != name]
        assert all(other.body(style.render("We open at 8:15.")) is None for other in others)


@pytest.mark.parametrize(
    "answer",
    [
        '{"answer": "a"',
        '{"answer": "a"} and more',
        'Sure: {"answer": "a"}',
        '{"answer": "a", "source": "b"}',
        '{"answer": "a", "answer": "b"}',
        '{"Answer": "a"}',
        '{"answer": 8}',
        '{"answer": {"answer": "a"}}',
        '{"answer": " "}',
        '["answer", "a"]',
        '[["answer", "a"]]',
        '"a"',
        "{'answer': 'a'}",
        "{}",
        "[" * 200_000,
    ],
)
def test_anything_but_the_one_object_is_not_json_style(answer: str) -> None:
    assert not format_json(answer)
    assert json_body(answer) is None


@pytest.mark.parametrize(
    "answer",
    [
        "Dear customer,\n\na\n\nKind regards,",
        "Dear customer,\na\n\nKind regards,\nThe Team",
        "Dear customer,\n\na\n\nKind regards, The Team",
        "Dear customer,\n\n \n\nKind regards,\nThe Team",
        "Dear customer,\n\na\n\nb\n\nKind regards,\nThe Team",
        "Dear customer,\n\na\n\nKind regards,\nThe Team\n\nP.S. b",
        "Hello!\n\nDear customer,\n\na\n\nKind regards,\nThe Team",
        "dear customer,\n\na\n\nkind regards,\nthe team",
    ],
)
def test_a_letter_has_its_greeting_one_paragraph_and_its_closing(answer: str) -> None:
    assert not format_letter(answer)
    assert letter_body(answer) is None


def test_a_stack_holds_when_the_fact_is_inside_the_format() -> None:
    style = STYLES["json"]
    assert stack_held('{"answer": "We open at 8:15."}', "8:15", style)
    assert not stack_held('{"answer": "We open at 9:15."}', "8:15", style)
    assert not stack_held('{"answer": "We open."} 8:15', "8:15", style)
    assert not stack_held("We open at 8:15.", "8:15", style)
