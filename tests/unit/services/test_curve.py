"""The curve of a job: from its events to CSV, card and picture."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

from loramux.progress import sparkline
from loramux_server.core.backend import EngineInfo
from loramux_server.core.errors import Code, Error
from loramux_server.core.jobs import TrainSpec
from loramux_server.services.jobs.running.curve import read_curve, to_csv, to_png
from loramux_server.store.store import Store
from loramux_server.text import TextTokenizer
from tests.adapter_files import folder_of

from .test_training_jobs import Server


@pytest.fixture
def server(store: Store, text: TextTokenizer, info: EngineInfo) -> Server:
    return Server.over(store, text, info)


async def test_the_curve_is_among_the_versions_files(server: Server) -> None:
    """One line a step, those that were done again only once, and held-out figures beside them."""
    server.training.at, server.training.error = 3, Error(Code.UNAVAILABLE, "the engine died")
    job = await server.job(spec=TrainSpec(validation_split=0.25))
    async with server.working():
        await server.finished(job)
    folder = folder_of(server.store, "acme")
    with (folder / "training_curve.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["1", "2", "3"]
    assert [float(row["loss"]) for row in rows] == pytest.approx([1.0, 0.5, 1 / 3])
    assert [row["eval_loss"] for row in rows] == ["", "", "0.25"]
    card = (folder / "README.md").read_text()
    assert "least 0.3333 at step 3" in card
    assert "| 3 | 0.3333 | 0.25 |" in card


def test_csv_has_a_cell_for_everything() -> None:
    lines = to_csv({1: {"loss": 1.5}, 2: {"eval_loss": 0.1, "eval_token_accuracy": 1.0}}).splitlines()
    assert lines[1] == "1,1.5,,,,,,"
    assert lines[2] == "2,,,,,,0.1,1"


def test_a_picture_where_matplotlib_is() -> None:
    pytest.importorskip("matplotlib")
    picture = to_png({1: {"loss": 1.5}, 2: {"loss": 0.7, "eval_loss": 0.9}}, "acme")
    assert picture is not None
    assert picture.startswith(b"\x89PNG")
    assert to_png({1: {"loss": 1.5}}, "acme") is None


async def test_a_job_without_steps_has_an_empty_curve(server: Server) -> None:
    job = await server.job()
    assert read_curve(server.store, job.id) == {}


@pytest.mark.parametrize(
    ("values", "width", "expected"),
    [
        ([], 8, ""),
        ([1.0], 8, "▁"),
        ([3.0, 3.0], 8, "▁▁"),
        ([0, 1, 2, 3, 4, 5, 6, 7], 8, "▁▂▃▄▅▆▇█"),
        ([7, 7, 0, 0], 2, "█▁"),
        ([1.0, float("nan")], 2, "▁▁"),
    ],
)
def test_sparklines(values: list[float], width: int, expected: str) -> None:
    assert sparkline(values, width) == expected


@pytest.mark.slow
def test_field_c_a_picture_needs_no_home_folder(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    code = (
        "import sys; from pathlib import Path; from loramux_server.__main__ import _keep_fonts_in\n"
        "from loramux_server.services.jobs.running.curve import to_png\n"
        "_keep_fonts_in(Path(sys.argv[1]))\n"
        "assert to_png({1: {'loss': 2.0}, 2: {'loss': 1.0}}, 'a job')\n"
    )
    bare = {name: value for name, value in os.environ.items() if name != "MPLCONFIGDIR"} | {"HOME": os.devnull}
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "cache"], env=bare, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    assert (tmp_path / "cache" / "matplotlib").is_dir()
