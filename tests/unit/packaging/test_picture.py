"""The picture of a terminal that the README shows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

TOOL = Path(__file__).parents[3] / "tools/terminal_picture.py"


def draw(picture: Path, code: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Draw what a piece of Python prints."""
    command = [sys.executable, TOOL, "--title", "demo", *options, picture, "--", sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def words(picture: Path) -> str:
    """The text in the picture."""
    return " ".join("".join(ElementTree.parse(picture).getroot().itertext()).split())


def test_colours_and_the_last_state_of_a_bar_are_drawn(tmp_path: Path) -> None:
    picture = tmp_path / "images/a.svg"
    done = draw(picture, r"print('\033[31mred\033[0m'); print('10 %\r100 %'); print('noise')", "--skip", "noise")
    assert done.returncode == 0, done.stderr
    assert "red" in words(picture)
    assert "100 %" in words(picture)
    assert "10 % " not in words(picture)
    assert "noise" not in words(picture)


def test_it_needs_nothing_from_elsewhere(tmp_path: Path) -> None:
    picture = tmp_path / "a.svg"
    assert draw(picture, "print(1)").returncode == 0
    assert "url(http" not in picture.read_text()


def test_a_command_that_fails_leaves_no_picture(tmp_path: Path) -> None:
    picture = tmp_path / "a.svg"
    done = draw(picture, "raise SystemExit('broken')")
    assert done.returncode != 0
    assert "broken" in done.stderr
    assert not picture.exists()
