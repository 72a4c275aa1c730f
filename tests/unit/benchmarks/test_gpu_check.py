"""The command that checks a GPU: a part that fails, hangs or does not fit is told, and costs the others nothing."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks.gpu import check
from benchmarks.gpu.check import Part, parse

SLEEP = "import time; time.sleep(60)"


def python(*lines: str) -> tuple[str, ...]:
    return ("-c", "; ".join(lines))


def test_each_part_is_written_whatever_the_others_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = [
        Part("fails", 20.0, python("import sys", "print('why')", "sys.exit(3)")),
        Part("hangs", 0.5, python("print('began', flush=True)", SLEEP)),
        Part("works", 20.0, python("print('tests/test_a.py::test_b[1] PASSED  [100%]')")),
    ]
    monkeypatch.setattr(check, "parts", lambda device, quick: made)
    file = tmp_path / "gpu.json"
    report = check.check(parse(["--device", "cpu", "--json", str(file)]))
    parts = json.loads(file.read_text())["parts"]
    assert parts == report["parts"]
    assert parts["fails"]["failed"] == "exit code 3"
    assert "why" in parts["fails"]["output"]
    assert (parts["hangs"]["failed"], parts["hangs"]["output"]) == ("not done after 0 s", "began\n")
    assert parts["works"]["summary"] == "1 passed"
    assert "failed" not in parts["works"]


def test_the_last_complete_figures_of_a_part_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    figures = ["print('a warning')", "print('{\"a\": 1}')", 'print(\'{"a": 1, "b": 2}\')', "print('{\"a\"', end='')"]
    ends = {"crashes": "import os; os._exit(9)", "hangs": SLEEP, "works": "print()"}
    options = parse(["--device", "cpu"])
    results = {}
    for name, end in ends.items():
        line = [sys.executable, "-u", *python(*figures, end)]
        monkeypatch.setattr(Part, "line", lambda self, options, line=line: line)
        results[name] = check.run(Part(name, 0.0), options, 5.0)
    assert {name: result["figures"] for name, result in results.items()} == {name: {"a": 1, "b": 2} for name in ends}
    assert {name: result.get("failed") for name, result in results.items()} == {
        "crashes": "exit code 9",
        "hangs": "not done after 5 s",
        "works": None,
    }


def test_a_part_without_figures_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Part, "line", lambda self, options: [sys.executable, *python("print('nothing')")])
    result = check.run(Part("silent", 0.0), parse(["--device", "cpu"]), 20.0)
    assert (result["failed"], result["output"]) == ("no figures", "nothing\n")


def test_failed_tests_are_named_and_those_that_were_over_counted(tmp_path: Path) -> None:
    """Of pytest as the parts run it: all tests run whatever one does, and one that ends the process hides no other."""
    file = tmp_path / "test_of_a_part.py"
    file.write_text(
        "import os, pytest\n"
        "def test_bad(): assert 1 == 2, 'because'\n"
        "@pytest.mark.parametrize('word', ['a b', 'c'])\n"
        "def test_good(word): pass\n"
        "@pytest.fixture\n"
        "def broken(): raise OSError('no device')\n"
        "def test_error(broken): pass\n"
        "@pytest.mark.slow\n"
        "def test_crash(): os._exit(7)\n"
    )
    options = parse(["--device", "cpu"])
    command = (*check.TESTS, str(file), "-m")
    result = check.run(Part("all", 0.0, (*command, "not slow")), options, 60.0)
    names = {name.rpartition("::")[2]: reason for name, reason in result["failures"].items()}
    assert names == {"test_bad": "AssertionError: because", "test_error": "OSError: no device"}
    assert result["summary"] == "1 failed, 2 passed, 1 error"
    assert result["failed"] == "exit code 1"
    ended = check.run(Part("ends", 0.0, (*command, "slow or not slow")), options, 60.0)
    assert ended["failed"] == "exit code 7"
    assert (ended["summary"], len(ended["failures"])) == ("1 failed, 2 passed, 1 error", 2)


def test_what_the_time_does_not_allow_is_not_run(tmp_path: Path) -> None:
    report = check.check(parse(["--device", "cpu", "--limit", "5", "--json", str(tmp_path / "gpu.json")]))
    assert {part["failed"] for part in report["parts"].values()} == {"not run: no time was left"}
