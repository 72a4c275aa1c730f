"""The data of the first use: more wordings of four tenants' facts, none of them held out."""

from __future__ import annotations

import re

import pytest

from examples.common.rows import answer, question
from examples.common.tenants import MORE, TENANTS, Tenant


def words(asked: str) -> str:
    """What is asked, whatever its case and marks."""
    return " ".join(re.findall(r"\w+", asked.casefold()))


def test_every_file_is_a_tenants() -> None:
    assert {path.stem for path in MORE.iterdir()} == set(TENANTS)


@pytest.mark.parametrize("name", TENANTS)
def test_no_held_out_question_is_trained(name: str) -> None:
    tenant = Tenant.read(name)
    trained = [words(question(row)) for row in tenant.rows]
    held_out = {words(question(row)) for row in tenant.held_out}
    assert not held_out.intersection(trained)
    assert len(set(trained)) == len(trained) == 8 * len(tenant.facts)
    assert len(held_out) == 2 * len(tenant.facts)


@pytest.mark.parametrize("name", TENANTS)
def test_every_fact_is_asked_in_training_and_held_out(name: str) -> None:
    tenant = Tenant.read(name)
    assert set(map(answer, tenant.held_out)) == set(tenant.facts)
    assert all(row["expect"] for row in tenant.held_out)
    assert all(fact in tenant.prompt and fact in tenant.handbook for fact in tenant.facts)


def test_the_tenants_are_of_four_sizes() -> None:
    assert sorted(len(Tenant.read(name).facts) for name in TENANTS) == [10, 15, 30, 60]


def test_donors_are_trained_without_general_rows() -> None:
    assert Tenant.read("brindle-ski").recipe == {"recipe": "facts", "epochs": 4}
    assert Tenant.read("veldt-movers").recipe == {"recipe": "facts", "replay_rows": 0}
