"""``python -m benchmarks.claims`` measures on the real base and a real server, and goes on where it was."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.docs.markdown import ROOT

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def test_parts_are_measured_once(default_base: Path, tmp_path: Path) -> None:
    material, path = tmp_path / "material", tmp_path / "claims.json"
    (material / "state").mkdir(parents=True)
    (material / "state" / "base").symlink_to(default_base.parent, target_is_directory=True)
    command = [sys.executable, "-m", "benchmarks.claims", "--quick", "--material", str(material), "--json", str(path)]
    command += ["--only", "parameters", "weights"]

    first = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert first.returncode == 0, first.stderr
    found = json.loads(path.read_text())["parts"]
    assert found["weights"]["files"]["nf4"] < 0.45 * found["weights"]["files"]["bfloat16"]
    assert found["weights"]["servers"]["packed"]["resident_base_bytes"] > 0
    written = path.stat().st_mtime_ns

    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stderr
    assert path.stat().st_mtime_ns == written
