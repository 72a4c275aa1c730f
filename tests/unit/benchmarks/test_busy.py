"""The benchmark beside busy processes: what is still to be measured, what is reached, what the file keeps."""

from __future__ import annotations

import json
import os
from pathlib import Path

import msgspec
import pytest

from benchmarks.busy import OURS, Cell, Report, begin_report, busy_processes, parse, write

OTHER = "GOMP_SPINCOUNT=0"


def cell(busy: int, streams: int, ours: float, other: float) -> Cell:
    speeds = {OURS: ours, OTHER: other}
    return Cell(busy, streams, speeds, {way: [speed] for way, speed in speeds.items()})


def report(*cells: Cell) -> Report:
    return Report({}, {}, {OURS: {}, OTHER: {"GOMP_SPINCOUNT": "0"}}, list(cells))


def test_the_goal_is_to_be_near_the_best_in_each_cell() -> None:
    met = [goal.met for goal in report(cell(0, 1, 45, 44), cell(1, 8, 91, 100), cell(2, 0, 89, 100)).goals()]
    assert met == [True, True, False]
    assert not report(cell(1, 1, 0.0, 40)).goals()[0].met


def test_a_run_goes_on_where_it_was(tmp_path: Path) -> None:
    path = tmp_path / "busy.json"
    options = parse(["--quick", "--json", str(path), "--also", "OMP_PROC_BIND=true"])
    first = begin_report(options)
    assert first.ways["OMP_PROC_BIND=true"] == {"OMP_PROC_BIND": "true"}
    first.cells.append(cell(0, 1, 45, 44))
    write(path, first)
    again = begin_report(options)
    assert again.cells == first.cells
    assert again.missing([(0, 1), (1, 1)]) == [(1, 1)]
    assert json.loads(path.read_text())["goals"][0]["met"]


def test_a_variable_that_has_no_value_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--also", "GOMP_SPINCOUNT"])
    assert "NAME=VALUE" in capsys.readouterr().err


def test_cells_are_named_by_their_load() -> None:
    assert [c.name for c in (cell(0, 1, 1, 1), cell(2, 16, 1, 1), cell(1, 0, 1, 1))] == [
        "1 stream, 0 busy",
        "16 streams, 2 busy",
        "training, 1 busy",
    ]


def test_busy_processes_compute_and_end() -> None:
    with busy_processes(2) as running:
        assert all(process.poll() is None for process in running)
    assert not any(os.path.exists(f"/proc/{process.pid}") for process in running)


def test_published_results_can_be_read_back() -> None:
    for path in (Path(__file__).parents[3] / "benchmarks" / "results").glob("busy-*.json"):
        found = msgspec.json.decode(path.read_bytes(), type=Report)
        assert found.cells, path
        assert all(set(c.speeds) == set(found.ways) for c in found.cells)
