"""What is trained for the stacking benchmark, and how its figures are put together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from benchmarks.stacking_recipes import EVERYBODY, STYLE, VARIANTS, Scope, Variant, as_row, gone_on, plan, styled
from benchmarks.stacking_table import Count, Seed, Stack, Tenant, figures, goals, over_seeds, pooled
from tools.make_data import MEASURED, Row, load_tenants, tenant_rows
from tools.score import STYLES

TENANTS = load_tenants()
UNSEEN = [t.name for t in TENANTS if t.role in MEASURED]
SCOPE = Scope("base/float32", TENANTS, list(STYLES), UNSEEN)


def names(variant: Variant, seed: int = 0, scope: Scope = SCOPE) -> tuple[set[str], set[str], set[str]]:
    made = plan(variant, seed, scope)
    return tuple({a.name for a in part.values()} for part in (made.donors, made.styles, made.tenants))  # type: ignore[return-value]


def test_styles_lie_over_donors_and_never_over_tenants() -> None:
    made = plan(VARIANTS["documented"], 0, SCOPE)
    donors = {a.name for a in made.donors.values()}
    assert len(donors) == sum(t.role == "donor" for t in TENANTS)
    assert set(made.tenants) == set(UNSEEN)
    for style in made.styles.values():
        assert {name for row in style.rows for name in row["on_top_of"]} == donors
    assert all("on_top_of" not in row for tenant in made.tenants.values() for row in tenant.rows)


def test_what_decides_an_adapter_decides_its_name() -> None:
    plain = VARIANTS["facts-only"]
    same, other = names(plain), names(plain)
    assert same == other
    for changed in (
        names(plain, seed=1),
        names(plain, scope=replace(SCOPE, base="another/float32")),
        names(plain, scope=replace(SCOPE, settings={"max_steps": 2})),
        names(replace(plain, facts={"rank": 4})),
        names(replace(plain, replay=EVERYBODY)),
    ):
        # A style's recipe may be the same: what lies underneath is not.
        assert all(not a & b for a, b in zip(same, changed, strict=True))
    styles = names(replace(plain, style={"rank": 4}))
    assert (styles[0] == same[0], styles[1] & same[1], styles[2] == same[2]) == (True, set(), True)


def test_variants_share_what_is_the_same_in_them() -> None:
    documented, weight, donors = (names(VARIANTS[name]) for name in ("documented", "weight-1.0", "donors-4"))
    assert weight[0] == documented[0]
    assert weight[2] == donors[2] == documented[2]
    assert donors[0] < documented[0]
    assert not weight[1] & documented[1]


def test_generic_rows_are_learned_by_those_whose_turn_it_is() -> None:
    none, few, many = (plan(VARIANTS[name], 0, SCOPE) for name in ("facts-only", "documented", "replay-112"))
    assert few.donors == many.donors == none.donors
    for name, plain in none.tenants.items():
        assert few.tenants[name].rows[: len(plain.rows)] == plain.rows
        assert len(few.tenants[name].rows) == len(plain.rows) + 32
        assert many.tenants[name].rows[: len(few.tenants[name].rows)] == few.tenants[name].rows
        assert len(many.tenants[name].rows) == len(plain.rows) + 112


def test_styles_go_on_over_what_small_donors_say() -> None:
    first = plan(VARIANTS["own-answers"], 0, SCOPE)
    assert plan(VARIANTS["documented"], 0, SCOPE).small == {}
    donor = next(iter(first.small.values()))
    said = {donor.name: [("When?", "At six.")]}
    made = gone_on(first, said, SCOPE)
    assert (made.donors, made.tenants, made.small) == (first.donors, first.tenants, first.small)
    for name, style in made.styles.items():
        assert style.recipe["init_from"] == first.styles[name].name
        assert not {"rank", "alpha", "layers"} & set(style.recipe)
        assert style.needs == {donor.name}
        over = next(row for row in style.rows if row["on_top_of"])
        assert STYLES[name].body(over["messages"][1]["content"]) == "At six."
    other = gone_on(first, {donor.name: [("When?", "At seven.")]}, SCOPE)
    assert not {a.name for a in other.styles.values()} & {a.name for a in made.styles.values()}


@pytest.mark.slow
def test_every_variant_can_be_planned_and_differs_from_the_documented_one() -> None:
    keys = {name: plan(variant, 0, SCOPE).key for name, variant in VARIANTS.items()}
    assert len(set(keys.values())) == len(keys)


@pytest.mark.parametrize(("variant", "stages"), [("documented", 2), ("styled-25", 3)])
def test_stages_train_what_is_underneath_first(variant: str, stages: int) -> None:
    made = plan(VARIANTS[variant], 0, SCOPE)
    assert len(made.stages) == stages
    have: set[str] = set()
    for stage in made.stages:
        for adapter in stage:
            assert {name for row in adapter.rows for name in row.get("on_top_of", ())} <= have
        have |= {adapter.name for adapter in stage}
    parts = (made.donors, made.styles, made.tenants, made.small)
    assert have == {a.name for part in parts for a in part.values()}


def test_a_share_of_a_tenants_rows_lies_over_styles_and_is_answered_in_them() -> None:
    tenant = next(t for t in TENANTS if t.name == UNSEEN[0])
    rows = tenant_rows(tenant, "train")
    found = styled(tenant, rows, 0.25, ["json", "letter"])
    over = [(row, plain) for row, plain in zip(found, rows, strict=True) if row != plain]
    assert len(over) == len(rows) // 4
    for row, plain in over:
        (name,) = row.on_top_of or {}
        assert STYLES[name].body(row.answer) == plain.answer
    assert {name for row, _ in over for name in row.on_top_of or {}} == {"json", "letter"}
    assert styled(tenant, rows, 0.0, ["json"]) == rows
    opened = [Row("q", "a", opening="Well: ")] * 4
    assert styled(tenant, opened, 1.0, ["json"]) == opened


def test_rows_name_the_adapters_as_the_server_has_them() -> None:
    row = Row("Where?", "Here.", on_top_of={"pine": 1.3})
    assert as_row(row, {"pine": "b-1"})["on_top_of"] == {"b-1": 1.3}
    assert as_row(replace(row, on_top_of={}), {})["on_top_of"] == {}
    assert "on_top_of" not in as_row(replace(row, on_top_of=None), {})


def seed(number: int, both: Sequence[int], generic: int = 8, foreign: Sequence[tuple[int, int]] = ()) -> Seed:
    """Stacks on tenants of ours with so many of ten right, and on foreign ones with (kept, of those right alone)."""
    ours = Tenant(Count(9, 10), Count(10, 10), Count(generic, 10), 60.0)
    stacks = {str(i): Stack(Count(n, 10), Count(10, 10), Count(n, 10), Count(n, 10)) for i, n in enumerate(both)}
    tenants = dict.fromkeys(stacks, ours)
    for i, (kept, alone) in enumerate(foreign):
        tenants[f"foreign-{i}"] = Tenant(Count(0, 20), Count(alone, 20), Count(0, 10), 60.0, foreign=True)
        stacks[f"foreign-{i}"] = Stack(Count(kept, 20), Count(0, 20), Count(kept, 20), Count(kept, alone))
    return Seed(number, tenants, {"json": stacks}, {"json": Count(10, 10)}, {"json": 70.0})


def test_what_foreign_tenants_keep_is_told_apart_from_ours() -> None:
    found = figures([seed(0, (9, 10), foreign=[(9, 10), (19, 20)]), seed(1, (9, 10), foreign=[(10, 10), (20, 20)])])
    assert found["json: kept, foreign"].mean == pytest.approx((28 / 30 + 1) / 2)
    assert found["json: kept, foreign"].error == pytest.approx(1 / 30)
    assert found["json: kept, foreign-0"].mean == pytest.approx(0.95)
    assert found["json: kept"].mean == pytest.approx(0.95)
    assert found["foreign tenant: fact"].mean == pytest.approx(0.75)
    for what in ("json: fact and format", "json: format", "generic kept", "tenant: fact"):
        assert found[what] == figures([seed(0, (9, 10)), seed(1, (9, 10))])[what]


def test_foreign_tenants_alone_can_be_measured() -> None:
    found = figures([seed(0, (), foreign=[(9, 10)])])
    assert set(found) == {"json: kept, foreign", "json: kept, foreign-0", "json: alone", "foreign tenant: fact"}
    assert [(g.value, g.bound, g.met) for g in goals("documented", found)] == [(0.9, 0.97, False)]


def test_tenants_are_pooled_and_seeds_give_the_error() -> None:
    found = figures([seed(0, (9, 10)), seed(1, (8, 9)), seed(2, (9, 9))])
    both = found["json: fact and format"]
    assert both.mean == pytest.approx(0.9)
    assert both.error == pytest.approx(0.05 / 3**0.5)
    assert str(both) == "90.0 ± 2.9 %"
    assert str(found["generic kept"]) == "80.0 ± 0.0 %"


def test_one_seed_has_no_error_and_none_no_figure() -> None:
    assert str(over_seeds([0.5])) == "50.0 %"
    with pytest.raises(ValueError, match="no seed"):
        over_seeds([])
    assert pooled([Count(1, 2), Count(2, 3)]) == Count(3, 5)
    assert Count(0, 0).share == 0.0


def test_goals_of_the_styles_that_were_measured() -> None:
    found = goals("documented", figures([seed(0, (9, 10), generic=7)]))
    assert [(g.value, g.bound, g.met) for g in found] == [(0.95, 0.95, True), (0.7, 0.8, False)]


def test_styles_are_trained_as_the_documented_recipe_has_it() -> None:
    assert {key: STYLE[key] for key in ("rank", "alpha", "layers", "learning_rate", "epochs")} == {
        "rank": 8,
        "alpha": 16,
        "layers": "15-29",
        "learning_rate": 2e-3,
        "epochs": 2,
    }
