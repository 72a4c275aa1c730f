"""The example of a task as its command runs it, in the quick variant, on the real base."""

from __future__ import annotations

from pathlib import Path

import pytest

from examples.common.figures import Number, Share
from examples.common.report import Report, read
from examples.task import run as task
from tests.e2e.server_process import ServerProcess

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(600)]


def value(report: Report, table: int, row: str, column: str) -> float:
    """A figure of a report."""
    made = report.tables[table]
    found = next(cells for cells in made.rows if cells[0] == row)[list(made.head).index(column)]
    assert isinstance(found, Share | Number)
    return found.value


def test_tickets_are_sorted(server: ServerProcess, tmp_path: Path) -> None:
    task.main(["--quick", "--server", server.address, "--output", str(tmp_path)])
    report = read(tmp_path)
    assert "<svg" in (tmp_path / "picture.svg").read_text()
    assert value(report, 0, "adapter, held to the labels", "answers that are a label") == 1
    tokens = "prompt tokens"
    assert value(report, 0, "adapter", tokens) < value(report, 0, "base, instructions", tokens)
    assert 0 <= value(report, 1, "with the temperature", "expected calibration error") <= 1
