"""The data of the first use: more wordings of four tenants' facts, none of them held out."""

from __future__ import annotations

import re

import pytest

from examples.domain_knowledge.tenants import TENANTS, Tenant


def words(question: str) -> str:
    """What is asked, whatever its case and marks."""
    return " ".join(re.findall(r"\w+", question.casefold()))


@pytest.mark.parametrize("name", TENANTS)
def test_no_held_out_question_is_trained(name: str) -> None:
    tenant = Tenant.read(name)
    trained = [words(q) for q in tenant.asked]
    held_out = {words(q) for q in tenant.held_out_questions}
    assert not held_out.intersection(trained)
    assert len(set(trained)) == len(trained) == 8 * tenant.facts
    assert len(held_out) == 2 * tenant.facts


@pytest.mark.parametrize("name", TENANTS)
def test_every_fact_has_its_own_answer_in_training(name: str) -> None:
    tenant = Tenant.read(name)
    answers = {row["messages"][-1]["content"] for row in tenant.rows}
    assert len(answers) == tenant.facts
    assert {row["messages"][-1]["content"] for row in tenant.held_out} == answers
    assert all(row["expect"] for row in tenant.held_out)


def test_the_tenants_are_of_four_sizes() -> None:
    assert sorted(Tenant.read(name).facts for name in TENANTS) == [10, 15, 30, 60]
