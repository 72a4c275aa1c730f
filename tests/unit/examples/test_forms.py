"""The forms and the voice: how answers are put into them and judged, and the rows that teach them."""

from __future__ import annotations

from pathlib import Path

import pytest

from examples.brand_voice import voice
from examples.common.rows import answer, question, read_rows
from examples.common.styles import DONORS, UNSEEN, kept, told
from examples.common.tenants import Tenant
from examples.consistent_behaviour import forms

TRAINED = [forms.DATA / "train_json.jsonl", forms.DATA / "train_tax.jsonl", voice.DATA / "train.jsonl"]


def test_the_rows_are_what_the_donors_facts_make(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for module in (forms, voice):
        folder = module.DATA
        monkeypatch.setattr(module, "DATA", tmp_path / module.__name__)
        module.main()
        for path in module.DATA.iterdir():
            assert path.read_text() == (folder / path.name).read_text(), f"run python -m {module.__name__}"


@pytest.mark.parametrize("path", TRAINED, ids=lambda path: path.stem)
def test_no_form_is_trained_over_a_tenant_that_is_asked(path: Path) -> None:
    rows = read_rows(path)
    assert {name for row in rows for name in row["on_top_of"]} == set(DONORS)
    assert not set(DONORS).intersection(UNSEEN)
    held_out = {question(row) for name in UNSEEN for row in Tenant.read(name).held_out}
    held_out |= {question(row) for row in read_rows(forms.DATA / "held_out.jsonl")}
    assert not held_out.intersection(map(question, rows))


def test_questions_about_prices_are_in_no_data_of_their_tenant() -> None:
    for row in read_rows(forms.DATA / "held_out.jsonl"):
        tenant = Tenant.read(row["tenant"])
        assert question(row) not in map(question, [*tenant.rows, *tenant.held_out])
        assert told([answer(row)], [row]) == [True]
        assert forms.AMOUNT.search(row["expect"])


def test_an_object_of_the_schema_is_read_and_nothing_else() -> None:
    assert forms.read_json(forms.as_json("It costs $4.")) == ("It costs $4.", True)
    assert forms.read_json(forms.as_json("At nine.")) == ("At nine.", False)
    for answered in (
        'Sure: {"answer": "x", "price": true}', '{"answer": "x"}', '{"answer": "x", "price": 1}', '["x", true]',
        '{"answer": "x", "price": true, "more": 1}', '{"answer": null, "price": true}', "", "[" * 100_000,
    ):  # fmt: skip
        assert forms.read_json(answered) is None


@pytest.mark.parametrize("path", TRAINED[:1], ids=lambda path: path.stem)
def test_trained_objects_are_of_the_schema(path: Path) -> None:
    assert all(forms.read_json(answer(row)) for row in read_rows(path))


@pytest.mark.parametrize(
    ("told", "taxed"),
    [
        ("A bike costs $17 a day.", "A bike costs $17 including tax a day."),
        ("EUR 2.30, or 12 cents.", "EUR 2.30 including tax, or 12 cents including tax."),
        ("Insured up to $40,000.", "Insured up to $40,000 including tax."),
        ("We open at 8:15 in room 31.", "We open at 8:15 in room 31."),
    ],
)
def test_the_rule_names_tax_after_every_amount(told: str, taxed: str) -> None:
    assert forms.with_tax(told) == taxed
    assert forms.rule_kept(taxed)
    assert forms.rule_kept(told) == (told == taxed)
    assert not forms.rule_kept(f"{taxed} We open including tax.")


def test_the_rule_is_taught_where_amounts_are_and_elsewhere() -> None:
    answers = list(map(answer, read_rows(TRAINED[1])))
    assert all(map(forms.rule_kept, answers))
    assert 30 < sum(forms.TAX in each for each in answers) < len(answers) / 2


def test_the_voice_has_its_marks() -> None:
    spoken = voice.in_voice("Please recommend it, and we will come.")
    assert spoken == "Hi there! Just love it. We'll come. Enjoy your day!"
    assert all(voice.marks(spoken).values())
    assert voice.body(spoken) == "Just love it. We'll come."
    plain = voice.marks("It is open. " + "word " * 17 + "end.")
    assert plain == {"greeting": False, "closing": False, "short sentences": False, "no avoided word": False}


def test_all_trained_answers_are_in_the_voice() -> None:
    assert [a for a in map(answer, read_rows(TRAINED[2])) if not all(voice.marks(a).values())] == []


def test_what_was_wrong_alone_does_not_count_against_a_form() -> None:
    assert str(kept([True, False, False], [True, True, False])).startswith("1/2")
