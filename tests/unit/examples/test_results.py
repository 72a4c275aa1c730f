"""Results in the repository are those that pages show."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from examples.common.paths import ROOT, page
from examples.common.report import on_page, read

RESULTS = sorted(ROOT.glob("examples/*/results"))


@pytest.mark.parametrize("folder", RESULTS, ids=lambda folder: folder.parent.name)
def test_page_table_and_picture_are_of_the_results(folder: Path) -> None:
    report = read(folder)
    assert report.example == folder.parent.name
    assert (folder / "table.md").read_text() == report.markdown()
    text = page(report.example).read_text()
    assert on_page(text, report) == text
    assert f"](../../examples/{report.example}/results/picture.svg)" in text
    assert (folder / "picture.svg").read_text().startswith("<?xml")


def test_the_readme_tells_figures_of_the_results() -> None:
    text = (ROOT / "README.md").read_text()
    table_of_uses = text.split("<!-- figures: uses -->")[1].split("<!-- figures: end -->")[0]
    told = 0
    for row in table_of_uses.splitlines():
        for page_name in re.findall(r"\(docs/examples/([\w-]+)\.md\)", row):
            table = (ROOT / "examples" / page_name.replace("-", "_") / "results/table.md").read_text()
            for figure in re.findall(r"\d+/\d+", row):
                assert f"| {figure} (" in table, (page_name, figure)
                told += 1
    assert told == 10
