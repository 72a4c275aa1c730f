"""The command that checks a GPU: a part that fails, hangs or does not fit is told, and costs the others nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.gpu import check
from benchmarks.gpu.check import Part, parse


def test_each_part_is_written_whatever_the_others_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = [
        Part("fails", 20.0, ("-c", "import sys; print('why'); sys.exit(3)")),
        Part("hangs", 0.5, ("-c", "import time; print('began', flush=True); time.sleep(60)")),
        Part("works", 20.0, ("-c", "print('5 passed')")),
    ]
    monkeypatch.setattr(check, "parts", lambda device, quick: made)
    file = tmp_path / "gpu.json"
    report = check.check(parse(["--device", "cpu", "--json", str(file)]))
    parts = json.loads(file.read_text())["parts"]
    assert parts == report["parts"]
    assert parts["fails"]["failed"] == "exit code 3"
    assert "why" in parts["fails"]["output"]
    assert parts["hangs"] == {"failed": "not done after 0 s", "output": "began\n"}
    assert parts["works"]["summary"] == "5 passed"


def test_what_the_time_does_not_allow_is_not_run(tmp_path: Path) -> None:
    report = check.check(parse(["--device", "cpu", "--limit", "5", "--json", str(tmp_path / "gpu.json")]))
    assert {part["failed"] for part in report["parts"].values()} == {"not run: no time was left"}
