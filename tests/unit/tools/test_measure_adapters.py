"""How answers of tenants and stacks are counted for the figures on the cards."""

from __future__ import annotations

import pytest

from tools.make_data import Fact, Tenant
from tools.measure_adapters import Share, facts_right, held_out, score_stack, score_tenant
from tools.score import STYLES

JSON = STYLES["json"]
TENANT = Tenant(
    "inn",
    "The Inn",
    "inn",
    "foreign",
    tuple(
        Fact(str(i), f"${i}", f"It costs ${i}.", train=("How much?",), tune=(f"Price {i}?",), final=(f"Cost {i}?",))
        for i in (5, 7)
    ),
)
"""Asked in this order: price 5, price 7, cost 5, cost 7."""


def test_questions_are_asked_part_by_part() -> None:
    assert [question for question, _, _ in held_out(TENANT)] == ["Price 5?", "Price 7?", "Cost 5?", "Cost 7?"]
    assert [question for question, _, _ in held_out(TENANT, ("final",))] == ["Cost 5?", "Cost 7?"]


def test_a_tenant_alone_is_scored_by_fact_and_by_whole_answer() -> None:
    answers = ["It costs $5.", "That is $7.", "It costs $7.", "It costs $7."]
    assert facts_right(TENANT, answers) == [True, True, False, True]
    assert score_tenant(TENANT, answers) == {"fact": Share(3, 4), "answer": Share(2, 4)}


def test_field_c_kept_counts_only_what_the_tenant_alone_has_right() -> None:
    alone = ["It costs $5.", "It costs $7.", "It costs $7.", "It costs $7."]
    stacked = [
        JSON.render("It costs $5."),
        "It costs $7.",  # the format is lost
        JSON.render("It costs $5."),  # right, but wrong without the style
        JSON.render("It costs $5."),  # the neighbouring fact
    ]
    assert score_stack(TENANT, JSON, stacked, alone) == {
        "both": Share(2, 4),
        "format": Share(3, 4),
        "fact": Share(3, 4),
        "kept": Share(1, 3),
    }


def test_nothing_right_alone_leaves_nothing_to_keep() -> None:
    wrong, right = ["No idea."] * 4, [JSON.render(answer) for _, _, answer in held_out(TENANT)]
    kept = score_stack(TENANT, JSON, right, wrong)["kept"]
    assert kept == Share(0, 0)
    assert (str(kept), kept.error) == ("0/0", 0.0)


def test_a_share_says_how_sure_it_is() -> None:
    assert Share(90, 100).error == pytest.approx(0.03)
    assert (Share(50, 50) + Share(40, 50)) == Share(90, 100)
    assert str(Share(199, 216)) == "199/216 (92.1 %)"
