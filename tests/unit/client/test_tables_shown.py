"""Tables on terminals of every width."""

from __future__ import annotations

import time

import pytest

from loramux.cli.common import when
from loramux.cli.tables import layout

COLUMNS = ["JOB", "ADAPTER", "STATE", "STEP>", "LOSS>", "CREATED", "RESULT"]
ROWS = [
    ["job-20261129-0123456789abcdef", "support-acme", "succeeded", "12/12", "0.4321", "2026-11-29", "support-acme@3"],
    ["job-20261128-fedcba9876543210", "日本", "failed", "3/12", "", "02:05:09", "the loss was not finite at step 3"],
]


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120, 200, 1000])
def test_field_c_no_table_breaks_a_word_or_leaves_the_terminal(width: int) -> None:
    from rich.cells import cell_len

    lines = [line for line, _ in layout(COLUMNS, ROWS, width)]
    assert max(map(cell_len, lines)) <= width
    text = "\n".join(lines)
    for row in ROWS:
        for cell in row:
            for word in cell.split():
                assert word in text


def test_field_c_a_row_is_a_line_where_there_is_room() -> None:
    lines = [line for line, _ in layout(COLUMNS, ROWS, 130)]
    assert len(lines) == 3
    assert lines[0].split() == [name.removesuffix(">") for name in COLUMNS]
    assert lines[1].split() == ROWS[0]
    assert lines[0].index("STATE") == lines[1].index("succeeded") == lines[2].index("failed") - 2 + 4  # two wide cells


def test_field_c_the_widest_column_wraps_between_words() -> None:
    wide = [["a", "one two three four five six seven eight nine ten eleven twelve", "5"]]
    lines = [line for line, _ in layout(["NAME", "TEXT", "COUNT>"], wide, 50)]
    assert lines[1:] == ["a     one two three four five six seven          5", "      eight nine ten eleven twelve"]


def test_field_c_a_narrow_table_becomes_paragraphs() -> None:
    lines = layout(COLUMNS, ROWS[:1], 60)
    assert lines[0] == ("job-20261129-0123456789abcdef", "bold")
    assert lines[1][0].startswith("  adapter support-acme, state succeeded, step 12/12,")


def test_field_c_times_of_today_are_times(monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    assert when(now)[2] == ":"
    assert when(now - 40 * 86400)[4] == "-"
    assert when(0) == ""
