"""``make claims`` runs, and goes on where it was."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.docs.markdown import ROOT

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def test_the_quick_variant_measures_every_claim_once(default_base: Path, tmp_path: Path) -> None:
    material, path = tmp_path / "material", tmp_path / "claims.json"
    (material / "state").mkdir(parents=True)
    (material / "state" / "base").symlink_to(default_base.parent, target_is_directory=True)
    command = [sys.executable, "-m", "benchmarks.claims", "--quick", "--material", str(material), "--json", str(path)]

    first = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert first.returncode == 0, first.stderr
    assert "not measured yet" not in first.stdout
    found = json.loads(path.read_text())["parts"]
    files = found["weights"]["files"]
    assert files["nf4"] < 0.45 * files["bfloat16"]
    peaks = {case["name"]: case["peak_bytes"] for case in found["memory"]}
    assert peaks["QLoRA as a job of loramux"] < peaks["full fine-tuning in float32"] / 2
    assert all(row["largest"] < 1e-3 for row in found["arithmetic"])

    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stderr
    assert json.loads(path.read_text())["parts"]["quality/facts/full"] == found["quality/facts/full"]
