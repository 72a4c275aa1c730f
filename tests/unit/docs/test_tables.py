"""Tables that are made from what the tests try."""

from __future__ import annotations

import re

import pytest

from benchmarks.claims import page as claims
from loramux_server.config.limits import LimitSettings
from tests.architectures import CASES
from tests.unit.docs.markdown import ROOT
from tools import limits
from tools.architectures import PAGE, table, with_table


def test_the_table_of_architectures_is_fresh() -> None:
    page = PAGE.read_text()
    assert with_table(page) == page, "run: python -m tools.architectures"
    assert all(f"`{model_type}`" in table() for model_type in CASES)


def test_the_tables_of_limits_are_fresh() -> None:
    page = limits.PAGE.read_text()
    assert limits.with_tables(page) == page, "run: python -m tools.limits"
    assert all(f"`--{name.replace('_', '-')}`" in page for name in LimitSettings.model_fields)


def test_the_claims_are_those_of_the_newest_results() -> None:
    parts = claims.newest()["parts"]
    page, readme = claims.PAGE.read_text(), claims.README.read_text()
    again = "run: python -m benchmarks.claims --page"
    assert claims.with_tables(page, parts) == page, again
    assert claims.with_summary(readme, parts) == readme, again
    assert "199/216" in (ROOT / "adapters" / "json" / "README.md").read_text(), "README.md says so in words"


def test_a_page_without_a_place_for_it_is_told() -> None:
    with pytest.raises(ValueError, match="markers"):
        with_table("nothing here")


def test_every_decision_is_in_the_index_in_order() -> None:
    folder = ROOT / "docs" / "decisions"
    listed = re.findall(r"^\| \[\d{4}\]\((\d{4}-[\w-]+\.md)\)", (folder / "README.md").read_text(), re.MULTILINE)
    assert listed == sorted(path.name for path in folder.glob("[0-9]*.md") if not path.name.startswith("0000"))
