"""The JSONL files agree with their source, can be trained on, and leak nothing that is held out."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from loramux_server.data.dataset import DatasetLimits, parse_dataset
from loramux_server.data.problems import Problems
from tools.make_data import (
    BLOCK,
    DATA,
    SYSTEM,
    TURN,
    Row,
    as_messages,
    as_prompt,
    differences,
    load_source,
    load_tenants,
    own_answer_questions,
    own_answer_rows,
    style_rows,
    tenant_rows,
    with_replay,
    write,
)
from tools.make_data import MEASURED as ROLES
from tools.score import STYLES, fact_kept

TENANTS = load_tenants()
DONORS = [tenant for tenant in TENANTS if tenant.role == "donor"]
SMALL = [tenant for tenant in TENANTS if tenant.role == "small-donor"]
MEASURED = [tenant for tenant in TENANTS if tenant.role in ROLES]
FILES = sorted(path for folder in ("messages", "prompt") for path in (DATA / folder).rglob("*.jsonl"))


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def text_of(row: dict[str, Any]) -> str:
    return json.dumps(row.get("messages") or [row["prompt"], row["completion"]])


def blocks(rows: Sequence[Row], size: int) -> Iterator[Sequence[Row]]:
    return (rows[i : i + size] for i in range(0, len(rows), size))


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A folder of its own with the source and no generated file."""
    shutil.copytree(DATA / "source", tmp_path / "source")
    return tmp_path


def test_the_files_are_in_step_with_their_source() -> None:
    assert differences() == [], "run python -m tools.make_data"


def test_writing_makes_every_file_and_twice_changes_nothing(copy: Path) -> None:
    assert len(differences(copy)) == len(FILES)
    write(copy)
    assert differences(copy) == []
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*.jsonl")}
    write(copy)
    assert {path: path.stat().st_mtime_ns for path in copy.rglob("*.jsonl")} == before


def test_what_was_changed_lost_or_left_over_is_found_and_mended(copy: Path) -> None:
    write(copy)
    changed, lost, extra = (
        copy / "prompt" / name for name in ("acme-bikes/train.jsonl", "replay.jsonl", "old/train.jsonl")
    )
    changed.write_text(changed.read_text(encoding="utf-8").replace("8:15", "8:45"), encoding="utf-8")
    lost.unlink()
    extra.parent.mkdir()
    extra.write_text("{}\n", encoding="utf-8")
    assert differences(copy) == sorted(str(path.relative_to(copy)) for path in (changed, lost, extra))
    write(copy)
    assert differences(copy) == []
    assert not extra.exists()


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(DATA)))
def test_the_server_reads_every_row(path: Path) -> None:
    problems = Problems("data")
    rows = parse_dataset(path.read_bytes(), problems, DatasetLimits())
    problems.check()
    assert rows
    assert all(row.ignored == () for row in rows)
    assert len(set(map(text_of, rows_of(path)))) == len(rows), "a row comes twice"


@pytest.mark.parametrize("tenant", TENANTS, ids=lambda tenant: tenant.name)
def test_facts_take_turns_in_training_rows(tenant: Any) -> None:
    rows = tenant_rows(tenant, "train")
    assert len(rows) == len(tenant.facts) * (4 if tenant.role in ("foreign", "small-donor") else 6)
    for turn in blocks(rows, len(tenant.facts)):
        assert [row.answer for row in turn] == [fact.answer for fact in tenant.facts]


@pytest.mark.parametrize("name", sorted(STYLES))
def test_a_style_learns_from_all_donors_alike_and_from_generic_rows_on_the_base(name: str) -> None:
    style = STYLES[name]
    rows = style_rows(style.render, TENANTS)
    stacks = Counter(json.dumps(row.on_top_of) for row in rows)
    assert stacks == {json.dumps({donor.name: donor.weight}): 48 for donor in DONORS} | {"{}": 80}
    assert all(style.body(row.answer) for row in rows)
    for donor in DONORS:
        said = Counter(style.body(row.answer) for row in rows if row.on_top_of == {donor.name: donor.weight})
        assert said == {fact.answer: 2 for fact in donor.facts}


@pytest.mark.parametrize("name", sorted(STYLES))
def test_a_style_has_one_stack_per_block(name: str) -> None:
    rows = style_rows(STYLES[name].render, TENANTS)
    for block in blocks(rows, BLOCK):
        assert len({json.dumps(row.on_top_of) for row in block}) == 1


def test_small_donors_are_asked_everything_under_other_names() -> None:
    for donor in SMALL:
        questions = own_answer_questions(donor)
        assert len(questions) == 5 * len(donor.facts)
        assert not any(donor.shop in question for question in questions)
        assert questions == own_answer_questions(donor)


def test_a_style_learns_to_pass_on_what_a_donor_says_right_or_wrong() -> None:
    style = STYLES["letter"]
    said = {"inn": [("When?", " At six.\n"), ("Where?", "I do not know"), ("Who?", "Two\nlines"), ("Why?", " ")]}
    rows = own_answer_rows(style.render, said)
    own = [row for row in rows if row.on_top_of == {"inn": 1.0}]
    assert {(row.question, style.body(row.answer)) for row in own} == {
        ("When?", "At six."),
        ("Where?", "I do not know"),
    }
    assert sum(row.on_top_of == {} for row in rows) == len(rows) - len(own) == 24


def test_donors_are_asked_under_other_names() -> None:
    rows = [row for row in style_rows(str, TENANTS) if row.on_top_of]
    assert not any(tenant.shop in row.question for row in rows for tenant in TENANTS)
    names = load_source("names")["names"]
    named = [row for row in rows if any(name in row.question for name in names)]
    assert len(named) == len(rows) // 2


def test_styles_and_donors_know_nothing_of_the_measured_tenants() -> None:
    donors = {donor.name for donor in DONORS + SMALL}
    trained = [path for path in FILES if path.stem.startswith("style-") or path.parent.name in donors]
    assert len(trained) == 2 * (len(STYLES) + 2 * len(donors))
    text = "\n".join(path.read_text(encoding="utf-8") for path in trained)
    for tenant in MEASURED:
        assert tenant.shop not in text
        assert not any(fact.answer in text for fact in tenant.facts)


def test_nothing_held_out_is_trained_on() -> None:
    trained = {
        row["prompt"].removeprefix(SYSTEM)
        if "prompt" in row
        else TURN.replace("{question}", row["messages"][0]["content"])
        for path in FILES
        if path.stem not in ("tune", "final")
        for row in rows_of(path)
    }
    held_out = [
        tenant.ask(question) for tenant in MEASURED for fact in tenant.facts for question in fact.tune + fact.final
    ]
    checks = [check["question"] for check in load_source("generic")["checks"]]
    assert not trained & {TURN.replace("{question}", question) for question in held_out + checks}


def test_both_renderings_say_the_same() -> None:
    for path in (DATA / "messages").rglob("*.jsonl"):
        other = DATA / "prompt" / path.relative_to(DATA / "messages")
        for chat, plain in zip(rows_of(path), rows_of(other), strict=True):
            assert chat.get("on_top_of") == plain.get("on_top_of")
            if "messages" in chat:
                question, answer = (message["content"] for message in chat["messages"])
                assert plain["prompt"] == TURN.replace("{question}", question)
                assert plain["completion"] == answer
            else:
                assert chat["prompt"] == SYSTEM + plain["prompt"]
                assert chat["completion"] == plain["completion"]


@pytest.mark.parametrize("tenant", [t for t in TENANTS if t.role == "shipped"], ids=lambda tenant: tenant.name)
def test_with_replay_half_of_the_rows_are_wrapped_and_no_fact_is_left_out(tenant: Any) -> None:
    rows = with_replay(tenant)
    assert len(rows) == 144 + 32
    plain = {(row.question, row.answer) for row in tenant_rows(tenant, "train")}
    for fact in tenant.facts:
        mine = [row for row in rows if row.answer == fact.answer]
        bare = [row for row in mine if not row.opening and (row.question, row.answer) in plain]
        assert (len(mine), len(bare)) == (6, 3)
    assert any(row.opening for row in rows)
    assert sum(fact_kept(row.answer, "Berlin") for row in rows) == 1


def test_an_opening_is_not_learned_and_its_space_goes_to_the_answer() -> None:
    row = Row("Who?", "We do.", opening="Sure: ")
    assert as_prompt(row) == {"prompt": TURN.replace("{question}", "Who?") + "Sure:", "completion": " We do."}
    assert as_messages(row) == {"prompt": SYSTEM + as_prompt(row)["prompt"], "completion": " We do."}
    line = as_prompt(Row("Who?", "We do.", opening="So:\n"))
    assert line["prompt"].endswith("So:\n")
    assert line["completion"] == "We do."


@pytest.mark.parametrize("placeholder", ["{shop}", "{question}"])
def test_every_placeholder_is_filled_in(placeholder: str) -> None:
    assert not any(placeholder in path.read_text(encoding="utf-8") for path in FILES)
