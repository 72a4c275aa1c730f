"""What the examples share: figures, reports, pages and the general questions."""

from __future__ import annotations

from pathlib import Path

import pytest

from examples.common.command import command_of
from examples.common.figures import Number, Share, mean, share
from examples.common.generic import QUESTIONS
from examples.common.picture import bars, save
from examples.common.report import Answers, Report, Table, on_page, read
from examples.common.rows import read_rows
from tools.make_data import load_source

REPORT = Report(
    "some_use",
    "python -m examples.some_use",
    "Some-Base on cpu in float32",
    [Table("Right | wrong", ["", "base", "tokens"], [["all", Share(3, 4), Number(21.5, 0.25)]])],
    [Answers("When?", "At nine.", {"base": "I do\nnot know.", "adapter": "At nine."})],
    settings={"epochs": 4},
)


def test_a_share_of_all_has_a_standard_error() -> None:
    assert str(share([True] * 8)) == "8/8 (100.0% ± 10.8%)"
    assert Share(1, 2) + Share(2, 2) == Share(3, 4)
    assert str(Share(0, 0)) == "none"


def test_a_mean_has_the_standard_error_of_its_values() -> None:
    assert str(mean([1.0, 2.0, 3.0])) == "2.0 ± 0.6"
    assert mean([4.0]).error is None


def test_a_report_is_read_as_it_was_written(tmp_path: Path) -> None:
    REPORT.write(tmp_path)
    again = read(tmp_path)
    assert again == REPORT
    assert (tmp_path / "table.md").read_text() == again.markdown()
    assert "| all | 3/4 (75.0% ± 17.1%) | 21.5 ± 0.2 |" in again.markdown()
    assert "**Right | wrong**" in again.markdown()


@pytest.mark.parametrize(
    ("quick", "more", "command"),
    [
        (False, (), "make example-some-use"),
        (True, (), "python -m examples.some_use --quick"),
        (False, ("--tenant ann", "--tenant bob"), "python -m examples.some_use --tenant ann --tenant bob"),
    ],
)
def test_a_report_names_the_command_that_makes_it_again(quick: bool, more: tuple[str, ...], command: str) -> None:
    assert command_of("some_use", quick, *more) == command


def test_a_page_gets_tables_and_answers() -> None:
    places = "".join(f"<!-- table: {name} -->\n<!-- table: end -->\n" for name in ("results", "answers"))
    page = on_page(f"# Use\n{places}End", REPORT)
    assert "- base: `I do not know.`\n- adapter: `At nine.`" in page
    assert on_page(page, REPORT) == page
    with pytest.raises(ValueError, match="no markers for the table of results"):
        on_page("# Use\n", REPORT)


def test_the_same_figures_give_the_same_picture(tmp_path: Path) -> None:
    for name in ("a.svg", "b.svg"):
        save(bars("Right", ["one", "two"], {"base": [Share(1, 4), Share(2, 4)]}), tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert "two" in (tmp_path / "a.svg").read_text()


def test_general_questions_are_in_no_data() -> None:
    generic = load_source("generic")
    known = {item["question"] for part in ("style", "replay", "checks") for item in generic[part]}
    asked = [row["question"] for row in read_rows(QUESTIONS)]
    assert len(set(asked)) == len(asked)
    assert not known.intersection(asked)
    assert all(row["accept"] for row in read_rows(QUESTIONS))
