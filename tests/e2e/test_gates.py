"""Gates on the real base: answers are asked of the engine, and a version that is no better stays a candidate."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from loramux import Client
from tests.e2e.test_main_job import RECIPE, ROWS

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def test_a_better_version_and_a_worse_one(client: Client, tmp_path: Path) -> None:
    question = [{"role": "user", "content": "When does the mill open?"}]
    held_out = [ROWS[0], ROWS[2]]
    good = client.train("gated", data=ROWS, validation=held_out, epochs=16, gate={"min_accuracy": 1.0}, **RECIPE)
    assert good.wait(timeout=110).ref == "gated@1"
    assert good.info.gate_result == ""
    assert good.metrics["eval_accuracy"] == 1.0
    assert good.metrics["eval_questions"] == 2
    assert good.metrics["eval_loss"] < good.metrics["base_loss"]

    poor = {**RECIPE, "learning_rate": 1e-5}
    worse = client.train("gated", data=ROWS, validation=held_out, max_steps=1, gate="improves", **poor)
    assert worse.wait(timeout=110).ref == "gated@2"
    assert "that of the current version" in worse.info.gate_result
    assert worse.metrics["current_loss"] == pytest.approx(good.metrics["eval_loss"], rel=1e-2)
    assert (
        client.generate(messages=question, adapters=["gated"], max_tokens=24).text.strip()
        == ROWS[0]["messages"][1]["content"]
    )
    assert client.generate(messages=question, adapters=["gated@2"], max_tokens=4).text

    further = client.train("gated", data=ROWS, max_steps=2, init_from="gated@1", batch_size=4, learning_rate=1e-3)
    version = further.wait(timeout=110)
    assert (version.ref, version.rank) == ("gated@3", RECIPE["rank"])
    first = next(e for e in further.events() if e.type == "step")
    assert first.metrics["loss"] < 0.3
    client.adapters.download("gated@1", tmp_path / "gated")
    with (tmp_path / "gated" / "training_curve.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 16
    assert "Gate `min_accuracy:1.0`: passed" in (tmp_path / "gated" / "README.md").read_text()
