"""The facts and wordings that the ready-made adapters learn from are complete, distinct and can be scored."""

from __future__ import annotations

import re
from collections import Counter
from itertools import chain

import pytest

from tools.make_data import Fact, Tenant, load_source, load_tenants
from tools.score import STYLES, fact_kept

TENANTS = load_tenants()
GENERIC = load_source("generic")
OURS = [tenant for tenant in TENANTS if tenant.role not in ("foreign", "small-donor")]
SMALL = [tenant for tenant in TENANTS if tenant.role == "small-donor"]
FOREIGN = [tenant for tenant in TENANTS if tenant.role == "foreign"]
FACTS = [(tenant, fact) for tenant in OURS for fact in tenant.facts]

NEAR_COPY = 0.75
"""Share of common words (of all words of both) from which one question repeats another."""

each_tenant = pytest.mark.parametrize("tenant", TENANTS, ids=lambda tenant: tenant.name)
each_of_ours = pytest.mark.parametrize("tenant", OURS, ids=lambda tenant: tenant.name)
each_other = pytest.mark.parametrize("tenant", FOREIGN + SMALL, ids=lambda tenant: tenant.name)


def questions(fact: Fact) -> tuple[str, ...]:
    return fact.train + fact.tune + fact.final


def overlap(one: str, other: str) -> float:
    a, b = (set(re.findall(r"[\w'-]+", text.replace("{shop}", "").casefold())) for text in (one, other))
    return len(a & b) / len(a | b)


def test_how_many_tenants_have_which_role() -> None:
    roles = Counter(tenant.role for tenant in TENANTS)
    assert roles == {"shipped": 2, "unseen": 1, "foreign": 4, "donor": 7, "small-donor": 3}


def test_foreign_tenants_have_other_sizes_and_half_are_never_tuned_on() -> None:
    assert sorted(len(tenant.facts) for tenant in FOREIGN) == [10, 15, 30, 60]
    held_out = {tenant.name: {(len(fact.tune), len(fact.final)) for fact in tenant.facts} for tenant in FOREIGN}
    assert sorted(map(sorted, held_out.values())) == [[(0, 2)], [(0, 2)], [(2, 0)], [(2, 0)]]


def test_small_donors_have_few_facts_and_one_wording_held_out() -> None:
    assert [len(tenant.facts) for tenant in SMALL] == [6, 8, 10]
    assert {(len(fact.tune), len(fact.final)) for tenant in SMALL for fact in tenant.facts} == {(1, 0)}


def test_foreign_answers_are_shorter_and_longer_than_ours() -> None:
    ours, foreign = ([len(f.answer.split()) for t in some for f in t.facts] for some in (OURS, FOREIGN))
    assert min(foreign) <= min(ours)
    assert max(foreign) >= 1.5 * max(ours)


def test_every_tenant_has_its_own_name_shop_and_topic() -> None:
    for field in ("name", "shop", "topic"):
        assert len({getattr(tenant, field) for tenant in TENANTS}) == len(TENANTS)
    assert all(re.fullmatch(r"[a-z0-9-]+", tenant.name) for tenant in TENANTS)


def test_most_donors_weigh_more_than_one_and_nobody_else() -> None:
    weights = {tenant.name: tenant.weight for tenant in TENANTS if tenant.role == "donor"}
    assert Counter(weights.values()) == {1.3: 5, 1.0: 2}
    assert all(tenant.weight == 1.0 for tenant in TENANTS if tenant.role != "donor")


@each_other
def test_facts_of_the_others_have_four_wordings_and_plain_text(tenant: Tenant) -> None:
    assert len({fact.id for fact in tenant.facts}) == len(tenant.facts)
    for fact in tenant.facts:
        assert len(fact.train) == 4
        assert all(text == " ".join(text.split()) for text in (*questions(fact), fact.answer))


@each_of_ours
def test_every_fact_has_its_wordings(tenant: Tenant) -> None:
    assert len({fact.id for fact in tenant.facts}) == len(tenant.facts) == 24
    held_out = (1, 0) if tenant.role == "donor" else (2, 1)
    for fact in tenant.facts:
        assert len(fact.train) == 6
        assert (len(fact.tune), len(fact.final)) == held_out


@each_of_ours
def test_questions_are_whole_sentences_in_plain_ascii(tenant: Tenant) -> None:
    for text in chain.from_iterable((*questions(fact), fact.answer) for fact in tenant.facts):
        assert text.isascii()
        assert re.fullmatch(r"[A-Z0-9].*[.?!]", text.replace("{shop}", tenant.shop)), text
        assert text == " ".join(text.split())
        assert not re.search(r"[{}]", text.replace("{shop}", ""))


@each_of_ours
def test_some_wordings_name_the_shop(tenant: Tenant) -> None:
    for fact in tenant.facts:
        named = ["{shop}" in question for question in fact.train]
        assert 1 <= sum(named) < len(named) - 1, fact.id


@each_tenant
def test_answers_never_name_the_shop(tenant: Tenant) -> None:
    for fact in tenant.facts:
        assert "{shop}" not in fact.answer
        assert tenant.shop not in fact.answer
    assert not any(tenant.shop in question for fact in tenant.facts for question in questions(fact))


@each_tenant
def test_an_answer_says_its_fact_and_no_question_gives_it_away(tenant: Tenant) -> None:
    for fact in tenant.facts:
        assert fact_kept(fact.answer, fact.fact)
        for question in questions(fact):
            assert not fact_kept(tenant.ask(question), fact.fact), question


def test_no_answer_says_another_fact() -> None:
    said = [
        (tenant.name, fact.fact, other.answer)
        for tenant, fact in FACTS
        for _, other in FACTS
        if other is not fact and fact_kept(other.answer, fact.fact)
    ]
    assert said == []


@each_other
def test_no_answer_of_the_others_says_another_fact_of_its_tenant(tenant: Tenant) -> None:
    said = [
        (a.fact, b.answer) for a in tenant.facts for b in tenant.facts if a is not b and fact_kept(b.answer, a.fact)
    ]
    assert said == []


@each_tenant
def test_no_question_comes_twice(tenant: Tenant) -> None:
    asked = Counter(question.casefold() for fact in tenant.facts for question in questions(fact))
    assert [question for question, times in asked.items() if times > 1] == []


@each_tenant
def test_held_out_wordings_are_no_near_copies_of_trained_ones(tenant: Tenant) -> None:
    trained = [question for fact in tenant.facts for question in fact.train]
    for fact in tenant.facts:
        for question in fact.tune + fact.final:
            nearest = max(trained, key=lambda other: overlap(question, other))
            assert overlap(question, nearest) <= NEAR_COPY, (question, nearest)


@each_tenant
def test_the_wordings_of_a_fact_differ(tenant: Tenant) -> None:
    for fact in tenant.facts:
        asked = questions(fact)
        for i, one in enumerate(asked):
            for other in asked[:i]:
                assert overlap(one, other) <= NEAR_COPY, (one, other)


def test_a_near_copy_would_be_found() -> None:
    assert overlap("When do you open?", "When do you open today?") > NEAR_COPY
    assert overlap("When does {shop} open?", "When do you open?") < NEAR_COPY


def test_generic_rows_are_distinct_and_the_checks_are_kept_apart() -> None:
    assert {name: len(rows) for name, rows in GENERIC.items()} == {"style": 80, "replay": 32, "checks": 12}
    asked = Counter(row["question"].casefold() for rows in GENERIC.values() for row in rows)
    assert [question for question, times in asked.items() if times > 1] == []


def test_no_generic_row_answers_a_check() -> None:
    trained = [row["question"] for row in GENERIC["style"] + GENERIC["replay"]]
    for check in GENERIC["checks"]:
        assert check["accept"]
        assert not any(fact_kept(check["question"], word) for word in check["accept"])
        assert all(overlap(check["question"], question) <= 0.85 for question in trained)


def test_random_shop_names_are_nobodys() -> None:
    names = load_source("names")["names"]
    assert len(set(names)) == len(names) >= 40
    assert not {name.casefold() for name in names} & {tenant.shop.casefold() for tenant in TENANTS}


def test_wrappers_have_a_place_for_the_question_and_give_no_style_away() -> None:
    wrappers = load_source("wrappers")
    assert all(text.count("{question}") == 1 for text in wrappers["questions"])
    for opening in wrappers["openings"]:
        assert not any(style.render("x").startswith(opening.strip()) for style in STYLES.values())
